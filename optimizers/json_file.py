"""One JSON object of a model folder, read from its file.

Owns the words for a file that is none. Knows nothing of what the object means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optimizers.errors import SourceError


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SourceError: The file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read: {error.strerror or error}.",
            path="model",
            remedy="Give this user read access to it.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{path} is no JSON file: {error}.", path="model", remedy="Fetch the model again."
        ) from error
    if not isinstance(content, dict):
        raise SourceError(
            f"{path} is no JSON object.", path="model", remedy="Fetch the model again."
        )
    return content
