"""SHA-256 of files and values, and the few filesystem acts that make a write all-or-nothing.

Knows nothing of what the bytes mean or of where a store lies.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.manifest import canonical_json

_CHUNK = 1 << 20


def sha256_file(path: Path, *, progress: Callable[[int], None] | None = None) -> str:
    """Hash a file's bytes; ``progress`` hears how many bytes each chunk had."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if progress is not None:
                progress(count)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hash a JSON value in its canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def is_sha256(text: str) -> bool:
    """Whether a text is a SHA-256 in lower-case hex, and hence safe as a file name."""
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


def write_atomically(path: Path, content: bytes, *, scratch: Path, mode: int = 0o644) -> None:
    """Write a file so that readers see the old content or the new, never half of it.

    ``scratch`` is a folder on the same file system for the draft.
    """
    draft = scratch / f"{path.name}.{secrets.token_hex(8)}"
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(mode)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Have a file's bytes reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Have a rename inside a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
