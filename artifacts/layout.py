"""Where things lie in a store, and how its errors are told.

Owns folder names, the default root and the translation of ``OSError`` into ``StoreError``. Knows
nothing of what is stored.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import StoreError

ROOT_VARIABLE = "INFERENCE_UNLIMITED_STORE"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def default_root(environment: Mapping[str, str]) -> Path:
    """The store's folder when a config names none."""
    if named := environment.get(ROOT_VARIABLE):
        return Path(named).expanduser()
    return Path(environment.get("HOME", "~")).expanduser() / ".cache" / "inference-unlimited"


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of a store under ``root``."""

    root: Path

    @property
    def blobs(self) -> Path:
        """Files by the SHA-256 of their content, flat and read-only."""
        return self.root / "blobs"

    @property
    def manifests(self) -> Path:
        """One JSON file per artifact, by digest; what is not listed here does not exist."""
        return self.root / "manifests"

    @property
    def recipes(self) -> Path:
        """Pointers from recipe digest to artifact digest."""
        return self.root / "recipes"

    @property
    def stages(self) -> Path:
        """Intermediate results by key, one folder each."""
        return self.root / "stages"

    @property
    def training(self) -> Path:
        """Checkpoints of stages that train, by the result's key; gone once that is kept."""
        return self.root / "training"

    @property
    def sources(self) -> Path:
        """What is known about model folders: content digests, sampled texts, reference logits."""
        return self.root / "sources"

    @property
    def hosts(self) -> Path:
        """What belongs to this machine alone; optional and rebuildable."""
        return self.root / "hosts"

    @property
    def studies(self) -> Path:
        """Journals of searches, made when the first search begins."""
        return self.root / "studies"

    @property
    def locks(self) -> Path:
        """Lock files; empty."""
        return self.root / "locks"

    @property
    def tmp(self) -> Path:
        """Drafts; nothing here is ever read by anybody but its writer."""
        return self.root / "tmp"

    def create(self) -> None:
        """Make the folders, private to the user, as far as they are missing."""
        with storing(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (
                self.blobs,
                self.manifests,
                self.recipes,
                self.stages,
                self.training,
                self.sources,
                self.hosts,
                self.locks,
                self.tmp,
            ):
                folder.mkdir(exist_ok=True)


@contextmanager
def storing(root: Path) -> Iterator[None]:
    """Translate what the operating system says about the store into a sentence and a remedy.

    Raises:
        StoreError: The disk is full, the folder may not be written, or it is no folder.
    """
    try:
        yield
    except OSError as error:
        raise _told(root, error) from error


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Translate what the operating system says while something in the store is read.

    Raises:
        StoreError: A file may not be read, or the disk fails.
    """
    try:
        yield
    except OSError as error:
        place = error.filename or root
        raise StoreError(
            f"The store {root} cannot be read: {place}: {os.strerror(error.errno or 0)}.",
            remedy="Give this user read access to all of the store."
            if error.errno in _DENIED
            else f"Check the disk, or set {ROOT_VARIABLE} to another folder.",
        ) from error


def _told(root: Path, error: OSError) -> StoreError:
    if error.errno in _FULL:
        return StoreError(
            f"The disk of the store {root} is full ({os.strerror(error.errno or 0)}).",
            remedy="Free space, run prune-store, or set another store folder; "
            "nothing half-written is left.",
        )
    if error.errno in _DENIED:
        return StoreError(
            f"The store {root} cannot be written ({os.strerror(error.errno or 0)}).",
            remedy=f"Give this user write access, or set {ROOT_VARIABLE} to another folder.",
        )
    return StoreError(
        f"The store {root} cannot be used: {error}.",
        remedy=f"Check the folder, or set {ROOT_VARIABLE} to another one.",
    )
