"""Intermediate results of builds, kept so that a killed build resumes and variants share work.

Owns ``stages/<key>/`` in the store: the result's files and, written last, ``done.json``. A result
that was changed or truncated counts as missing. Owns ``training/<key>/`` too, where what makes a
result leaves what it can go on with. Only who holds a result's lock removes anything of it. Knows
nothing of what the files are.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from artifacts.digest import sha256_file, sync_file, sync_folder, write_atomically
from artifacts.layout import Layout, storing
from artifacts.locks import exclusive
from artifacts.manifest import ExportRecord, Frozen, GraphSpec, StageRecord
from optimizers.sources import Source

_DONE = "done.json"


class _Done(Frozen):
    """The form of ``done.json``: digests of the files, and what was said about them."""

    files: dict[str, str]
    record: StageRecord
    graph: GraphSpec | None
    export: ExportRecord | None


@dataclass(frozen=True, slots=True)
class Made:
    """What a step says about what it made; kept beside the files."""

    record: StageRecord
    graph: GraphSpec | None = None
    export: ExportRecord | None = None
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A finished intermediate result."""

    folder: Path
    record: StageRecord
    graph: GraphSpec | None
    export: ExportRecord | None
    source: Source | None


class Results:
    """The intermediate results of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def find(self, key: str) -> Result | None:
        """Give a finished result whose files are what they were.

        One that is damaged stays for ``make`` to replace: whoever only looks holds no lock.
        """
        folder = self._layout.stages / key
        try:
            done = _Done.model_validate_json((folder / _DONE).read_bytes())
        except (OSError, ValidationError):  # not begun, not finished, or of an older form
            return None
        for name, digest in done.files.items():
            path = folder / name
            try:
                if path.is_symlink() or not path.is_file() or sha256_file(path) != digest:
                    return None
            except FileNotFoundError:  # replaced by another builder at this moment
                return None
        with contextlib.suppress(OSError):  # the collector goes by when a result was last used
            os.utime(folder)
        return Result(folder, done.record, done.graph, done.export, None)

    def has(self, key: str) -> bool:
        """Whether something is kept under ``key``, be it damaged."""
        return (self._layout.stages / key / _DONE).is_file()

    @contextmanager
    def passing(self, key: str) -> Iterator[Path]:
        """An empty folder for what would be kept under ``key`` and is not, gone afterwards."""
        with exclusive(self._layout, f"stage-{key}"):
            self._clear(key)
            with self._scratch(key) as draft:
                yield draft

    def make(self, key: str, work: Callable[[Path], Made], *, keep: bool) -> Result:
        """Have ``work`` fill a folder and keep it under ``key``, unless that is there by now.

        Another builder that makes the same result at the same time is waited for.
        """
        with exclusive(self._layout, f"stage-{key}"):
            if keep and (found := self.find(key)) is not None:
                return found
            self._clear(key)
            with self._scratch(key) as draft:
                made = work(draft)
                if keep:
                    with storing(self._layout.root):
                        self._finish(draft, key, made)
                        shutil.rmtree(self._layout.training / key, ignore_errors=True)
        folder = self._layout.stages / key
        return Result(folder, made.record, made.graph, made.export, made.source)

    def lasting(self, key: str) -> Path:
        """A folder that is there until the result is kept; for who is making that alone."""
        folder = self._layout.training / key
        with storing(self._layout.root):
            folder.mkdir(exist_ok=True)
        return folder

    def _clear(self, key: str) -> None:
        """Free what builders that were killed, or a disk that changed it, left of this result."""
        with storing(self._layout.root):
            for left in (self._layout.stages / key, *self._layout.tmp.glob(f"{key}.*")):
                if left.exists():
                    shutil.rmtree(left)

    @contextmanager
    def _scratch(self, key: str) -> Iterator[Path]:
        draft = self._layout.tmp / f"{key}.{secrets.token_hex(8)}"
        with storing(self._layout.root):
            draft.mkdir()
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _finish(self, draft: Path, key: str, made: Made) -> None:
        files = {}
        for path in sorted(draft.iterdir()):
            path.chmod(0o444)
            files[path.name] = sha256_file(path)
            sync_file(path)
        done = _Done(files=files, record=made.record, graph=made.graph, export=made.export)
        content = done.model_dump_json().encode()
        write_atomically(draft / _DONE, content, scratch=self._layout.tmp, mode=0o444)
        target = self._layout.stages / key
        draft.rename(target)
        sync_folder(target.parent)


def folder_bytes(folder: Path) -> int:
    """Bytes of the weights in a folder: safetensors, or ONNX models with their data."""
    weights = [
        path.stat().st_size
        for path in folder.iterdir()
        if path.suffix == ".safetensors" or path.name.endswith((".onnx", ".onnx.data"))
    ]
    return sum(weights)
