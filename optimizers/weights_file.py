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

PREFIX_BYTES = 8  # bytes: the header's length, little-endian
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
    return sum(_sizes(path))


def largest_tensor(path: Path) -> int:
    """How many numbers the largest tensor of a checked file holds.

    Raises:
        OSError: It cannot be read.
    """
    return max(_sizes(path), default=0)


def _sizes(path: Path) -> list[int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(PREFIX_BYTES), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    return [math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__"]


def _problem(path: Path) -> str | None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            return "is a Git LFS pointer and not the weights themselves"
        length = int.from_bytes(start[:PREFIX_BYTES], "little")
        if length > _LONGEST_HEADER:
            return "is no safetensors file"
        file.seek(PREFIX_BYTES)
        header = file.read(length)
    if len(start) < PREFIX_BYTES or len(header) < length:
        return f"is truncated: it ends in its header, after {size} bytes"
    try:
        whole = PREFIX_BYTES + length + _end(json.loads(header))
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
