"""Which checkpoints of a training are whole, and what was spent until then.

Owns the mark, written into a checkpoint's folder once everything else of it is on the disk: a
checkpoint without one, or with files that are not those it tells of, is not used. Knows nothing of
what a checkpoint holds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ValidationError

from artifacts.digest import sha256_file, sync_file, write_atomically
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


class _Whole(Frozen):
    """The form of ``mark.json``."""

    mark: Mark
    files: dict[str, str]


def write_mark(folder: Path, mark: Mark) -> None:
    """Call a checkpoint whole."""
    for path in folder.iterdir():
        sync_file(path)
    content = _Whole(mark=mark, files=_digests(folder)).model_dump_json().encode()
    write_atomically(folder / _MARK, content, scratch=folder.parent, mode=0o600)


def find_last(folder: Path) -> tuple[Path, Mark] | None:
    """Give the whole checkpoint that got furthest; those that are not whole are removed."""
    found: list[tuple[Path, Mark]] = []
    for path in folder.glob(f"{PREFIX}*"):
        if (mark := _read(path)) is None:
            shutil.rmtree(path)
        else:
            found.append((path, mark))
    return max(found, key=lambda one: one[1].steps, default=None)


def _read(folder: Path) -> Mark | None:
    try:
        whole = _Whole.model_validate_json((folder / _MARK).read_bytes())
    except (OSError, ValidationError):
        return None
    return whole.mark if whole.files == _digests(folder) else None


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != _MARK}
