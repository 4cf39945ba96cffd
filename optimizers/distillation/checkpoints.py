"""Which checkpoints of a training are whole, and what was spent until then.

Owns the mark, written into a checkpoint's folder once everything else of it is on the disk: a
checkpoint without one was cut short. Knows nothing of what a checkpoint holds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from artifacts.digest import sync_file, write_atomically
from artifacts.manifest import Frozen

PREFIX = "checkpoint-"  # Trainer's, before the number of steps
_MARK = "mark.json"


class Mark(Frozen):
    """What is known about a whole checkpoint.

    Attributes:
        steps: Steps that were taken.
        seconds: What they took, in all processes that took part.
        is_last: Whether the training was to end there.
    """

    steps: int
    seconds: float
    is_last: bool


def write_mark(folder: Path, mark: Mark) -> None:
    """Call a checkpoint whole."""
    for path in folder.iterdir():
        sync_file(path)
    write_atomically(folder / _MARK, mark.model_dump_json().encode(), scratch=folder, mode=0o600)


def find_last(folder: Path) -> tuple[Path, Mark] | None:
    """Give the whole checkpoint that got furthest; those that are not whole are removed."""
    found: list[tuple[Path, Mark]] = []
    for path in folder.glob(f"{PREFIX}*"):
        if (path / _MARK).is_file():
            found.append((path, Mark.model_validate_json((path / _MARK).read_bytes())))
        else:
            shutil.rmtree(path)
    return max(found, key=lambda one: one[1].steps, default=None)
