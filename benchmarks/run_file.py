"""What a bench leaves of a run: all figures as JSON, and beside it what it has printed.

Owns the files' names, and that the machine and the moment stand in them. Knows nothing of figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from server.comparison.machine import this_machine


def write_run(
    folder: Path, bench: str, created: datetime, content: Mapping[str, Any], told: str
) -> None:
    """Write ``bench-<moment>.json`` and ``.md`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{bench}-{created:%Y%m%d-%H%M%S}.json"
    whole = {
        "created": created.isoformat(timespec="seconds"),
        "machine": this_machine().as_json(),
        **content,
    }
    path.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    path.with_suffix(".md").write_text(told + "\n", encoding="utf-8")
