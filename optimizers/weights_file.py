"""One safetensors file, as far as its header tells: whether all of it is there.

Reads the header alone, so that a check of many gigabytes costs nothing. Knows nothing of what the
tensors are for.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from optimizers.errors import SourceError

_PREFIX = 8  # bytes: the header's length, little-endian
_LONGEST_HEADER = 100_000_000  # the format's own bound
_LFS_POINTER = b"version https://git-lfs"


def check_weights_file(path: Path) -> None:
    """Refuse a file that is cut short, or is no safetensors file at all.

    Raises:
        SourceError: With what it is instead.
        OSError: It cannot be read.
    """
    if (problem := _problem(path)) is not None:
        raise SourceError(
            f"The weights file {path} {problem}.", path="model", remedy="Fetch the model again."
        )


def count_parameters(path: Path) -> int:
    """How many numbers the tensors of a checked file hold.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_PREFIX), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes)


def _problem(path: Path) -> str | None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            return "is a Git LFS pointer and not the weights themselves"
        length = int.from_bytes(start[:_PREFIX], "little")
        if length > _LONGEST_HEADER:
            return "is no safetensors file"
        file.seek(_PREFIX)
        header = file.read(length)
    if len(start) < _PREFIX or len(header) < length:
        return f"is truncated: it ends in its header, after {size} bytes"
    try:
        whole = _PREFIX + length + _end(json.loads(header))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "is no safetensors file: its header cannot be read"
    if size == whole:
        return None
    word = "truncated" if size < whole else "damaged"
    return f"is {word}: it has {size} bytes, and its header tells of {whole}"


def _end(header: dict[str, Any]) -> int:
    """Where the last tensor ends, counted from the end of the header."""
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    return max((int(entry["data_offsets"][1]) for entry in entries), default=0)
