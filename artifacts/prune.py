"""Collects what nobody needs from a store.

Owns the order (pointers, then manifests, then blobs, so that no reader meets a manifest without its
files) and two rules: nothing is collected while a builder is at work, and no young draft, since
small records are written without telling anybody. Knows nothing of which recipes are worth keeping:
the caller says.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from artifacts.digest import is_sha256
from artifacts.errors import CorruptArtifactError, StoreError
from artifacts.layout import storing
from artifacts.locks import BUILDERS, collecting
from artifacts.store import Store

_DRAFT_S = 3600.0  # a draft that is older has lost its writer


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, or would be: paths relative to the store's root, and their bytes."""

    paths: tuple[str, ...]
    size_bytes: int


def prune(
    store: Store,
    *,
    older_than_s: float,
    dry_run: bool,
    keep_recipes: Collection[str] | None = None,
    clock: Callable[[], float] = time.time,
) -> Pruned:
    """Remove what no kept recipe leads to.

    Args:
        store: Where.
        older_than_s: Recipes and intermediate results that were used since are kept as well.
        dry_run: Only tell.
        keep_recipes: Recipes to keep whatever their age; None keeps all.
        clock: Seconds since the epoch.

    Raises:
        StoreError: A builder is at work, or something cannot be removed.
    """
    layout = store.layout
    if not layout.root.is_dir():
        return Pruned((), 0)
    with collecting(layout) as is_alone:
        if not is_alone:
            raise StoreError(
                f"A build is using the store {store.root}.", remedy="Try again when it is done."
            )
        with storing(layout.root):
            doomed = _doomed(store, keep_recipes, older_than_s, clock())
            size = sum(_size(path) for path in doomed)
            if not dry_run:
                for path in doomed:
                    _remove(path)
    return Pruned(tuple(str(path.relative_to(layout.root)) for path in doomed), size)


def _doomed(
    store: Store, keep_recipes: Collection[str] | None, older_than_s: float, now_s: float
) -> list[Path]:
    """Everything to remove, in the order in which it may be removed."""
    layout = store.layout
    before_s = now_s - older_than_s
    doomed: list[Path] = []
    artifacts: set[str] = set()
    for pointer in sorted(layout.recipes.glob("*.json")):
        is_old = pointer.stat().st_mtime < before_s
        artifact = _artifact(pointer)
        if artifact is None or (
            keep_recipes is not None and pointer.stem not in keep_recipes and is_old
        ):
            doomed.append(pointer)
        else:
            artifacts.add(artifact)
    blobs: set[str] = set()
    for path in sorted(layout.manifests.glob("*.json")):
        if path.stem not in artifacts:
            doomed.append(path)
            continue
        try:
            blobs |= {entry.sha256 for entry in store.manifest(path.stem).files}
        except CorruptArtifactError:
            doomed.append(path)
    doomed += [path for path in sorted(layout.blobs.iterdir()) if path.name not in blobs]
    for folder in (layout.stages, layout.training):
        doomed += [path for path in sorted(folder.glob("*")) if path.stat().st_mtime < before_s]
    doomed += [path for path in sorted(layout.tmp.iterdir()) if _is_left(path, now_s - _DRAFT_S)]
    doomed += [path for path in sorted(layout.locks.iterdir()) if path.name != BUILDERS]
    doomed += [path for path in _checked(store) if path.stem not in artifacts]
    doomed += [path for path in _measured(store) if path.name not in artifacts]
    return doomed


def _checked(store: Store) -> Iterator[Path]:
    yield from sorted((store.layout.hosts / "checked").glob("*.json"))


def _measured(store: Store) -> Iterator[Path]:
    """Folders of figures, one per machine and artifact."""
    yield from sorted(
        path for path in store.layout.hosts.glob("*/*") if path.is_dir() and is_sha256(path.name)
    )


def _artifact(pointer: Path) -> str | None:
    try:
        return str(json.loads(pointer.read_bytes())["artifact"])
    except (ValueError, KeyError, TypeError):  # half of nothing: not a pointer
        return None


def _is_left(draft: Path, before_s: float) -> bool:
    """Whether a draft was last written before then; one that is finished by now was not left."""
    try:
        return draft.lstat().st_mtime < before_s
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            return sum(_size(child) for child in path.iterdir())
        return path.lstat().st_size
    return 0


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
