"""Files of texts: what calibration and evaluation read.

Owns reading ``.jsonl`` (a ``text`` field per line) and ``.txt`` (documents parted by empty lines)
with bounds. Knows nothing of models or of tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

from artifacts.errors import TextError

LARGEST_BYTES = 256 << 20
_FORMS = "Give a .jsonl file with a text field per line, or a .txt file."


def check(name: str) -> Path:
    """Refuse a file that cannot be a file of texts, without reading it.

    Raises:
        TextError: It does not exist, has another form, or is too large.
    """
    try:
        path = Path(name).expanduser()
        size = path.stat().st_size if path.is_file() else None
    # The home of nobody, a name that is too long, or a place that this user may not look into.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TextError(
            f"{name!r} cannot be looked up: {reason}.", remedy="Check the path."
        ) from error
    if path.suffix not in {".jsonl", ".txt"}:
        raise TextError(f"{name!r} is neither .jsonl nor .txt.", remedy=_FORMS)
    if size is None:
        raise TextError(f"There is no file {name!r}.", remedy="Check the path.")
    if size > LARGEST_BYTES:
        raise TextError(
            f"{name!r} has {size} bytes; at most {LARGEST_BYTES} are read.",
            remedy="Take a sample of it: a few hundred documents are enough.",
        )
    return path


def read(name: str) -> list[str]:
    """Read the documents of a file, in order; empty ones are left out.

    Raises:
        TextError: The file cannot be read as texts; names the line.
    """
    path = check(name)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{name!r} cannot be read: {error}.", remedy=_FORMS) from error
    if path.suffix == ".txt":
        documents = [part.strip("\n") for part in content.split("\n\n")]
    else:
        documents = [_line(name, number, line) for number, line in _lines(content)]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise TextError(f"{name!r} holds no text.", remedy=_FORMS)
    return documents


def _lines(content: str) -> list[tuple[int, str]]:
    return [
        (number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()
    ]


def _line(name: str, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise TextError(
            f"Line {number} of {name!r} is no JSON object with a text field.", remedy=_FORMS
        ) from error
    if not isinstance(text, str):
        raise TextError(f"The text field of line {number} of {name!r} is no text.", remedy=_FORMS)
    return text
