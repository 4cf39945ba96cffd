"""The store of finished artifacts: blobs by content hash first, manifest last.

Owns publishing, looking up and opening artifacts, on a local disk and on a read-only mount, where
they are opened in place: ONNX keeps a model's weights beside it under the name the model gives, so
that name is the weights' hash. Knows nothing of how artifacts are made; ``artifacts.prune``
removes what nobody needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from artifacts.digest import is_sha256, sha256_file, sync_file, sync_folder, write_atomically
from artifacts.errors import CorruptArtifactError, FormatError
from artifacts.external_data import external_locations
from artifacts.layout import Layout, reading, storing
from artifacts.manifest import FORMAT, FileEntry, Manifest, Quality

REBUILD = "Delete the manifest or run the build again; it is then made anew."


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """An artifact that can be used in place."""

    manifest: Manifest
    blobs: Path

    def path(self, name: str) -> Path:
        """Where the file that the manifest calls ``name`` lies.

        Raises:
            CorruptArtifactError: The artifact has no such file.
        """
        for entry in self.manifest.files:
            if entry.name == name:
                return self.blobs / entry.sha256
        raise CorruptArtifactError(
            f"Artifact {self.manifest.digest[:12]} has no file {name!r}.", remedy=REBUILD
        )

    def has(self, name: str) -> bool:
        """Whether the artifact has a file of that name."""
        return any(entry.name == name for entry in self.manifest.files)


class Store:
    """A folder of artifacts. Reading never writes where writing is not possible."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self.layout.root

    def find(self, recipe: str) -> str | None:
        """Look up the artifact (digest) that a recipe was built into, if its manifest is here."""
        if not is_sha256(recipe):
            return None
        with reading(self.root):
            try:
                pointer = json.loads((self.layout.recipes / f"{recipe}.json").read_bytes())
                artifact = str(pointer["artifact"])
            except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
                return None
            if is_sha256(artifact) and (self.layout.manifests / f"{artifact}.json").is_file():
                return artifact
        return None

    def manifest(self, artifact: str) -> Manifest:
        """Read an artifact's manifest.

        Raises:
            CorruptArtifactError: There is none, or it does not describe this artifact.
        """
        if not is_sha256(artifact):
            raise CorruptArtifactError(f"{artifact!r} is no artifact digest.")
        path = self.layout.manifests / f"{artifact}.json"
        with reading(self.root):
            try:
                content = path.read_bytes()
            except FileNotFoundError as error:
                raise CorruptArtifactError(
                    f"The store {self.root} has no artifact {artifact[:12]}.", remedy=REBUILD
                ) from error
        manifest = parse_manifest(content, str(path), REBUILD)
        if manifest.digest != artifact:
            raise CorruptArtifactError(
                f"The manifest {path} describes artifact {manifest.digest[:12]}.", remedy=REBUILD
            )
        return manifest

    def open(self, artifact: str, *, verify: bool = False) -> StoredArtifact:
        """Give access to an artifact's files, checked.

        Every file's size is checked. Its whole hash is checked with ``verify``, and else when size
        or mtime is not what this store's local record says; a store that cannot be written keeps
        no record, and there sizes are all that is checked.

        Raises:
            CorruptArtifactError: A file is missing, is a link, or has another size or hash.
            StoreError: A file may not be read, or the disk fails.
        """
        manifest = self.manifest(artifact)
        record = self.layout.hosts / "checked" / f"{artifact}.json"
        checked = _read_record(record)
        is_writable = os.access(self.layout.hosts, os.W_OK)
        seen: dict[str, Any] = {}
        stored = StoredArtifact(manifest=manifest, blobs=self.layout.blobs)
        with reading(self.root):
            for entry in manifest.files:
                path = self._check_size(entry)
                state = path.stat()
                seen[entry.sha256] = [state.st_size, state.st_mtime_ns]
                if verify or (is_writable and checked.get(entry.sha256) != seen[entry.sha256]):
                    self._check_hash(entry)
            self._check_locations(stored)
        if is_writable and seen != checked:
            self._remember(record, seen)
        return stored

    def has_blob(self, digest: str) -> bool:
        """Whether the content of that hash is here, and is whole."""
        path = self.layout.blobs / digest
        with reading(self.root):
            return path.is_file() and not path.is_symlink() and sha256_file(path) == digest

    def add_blob(self, path: Path, *, is_spare: bool = False) -> tuple[str, int]:
        """Keep a copy of a file's content.

        Args:
            path: The file.
            is_spare: It lies in this store and is nobody else's: it may be moved.

        Returns:
            The content's SHA-256 and its size in bytes.
        """
        digest = sha256_file(path)
        size = path.stat().st_size
        target = self.layout.blobs / digest
        with storing(self.root):
            if self.has_blob(digest):
                return digest, size
            draft = path if is_spare else self.layout.tmp / f"{digest}.{secrets.token_hex(8)}"
            try:
                # A copy and no hard link: readers of ONNX weights refuse files with several names.
                if not is_spare:
                    shutil.copyfile(path, draft)
                draft.chmod(0o444)
                sync_file(draft)
                draft.replace(target)
            finally:
                draft.unlink(missing_ok=True)
            sync_folder(target.parent)
        return digest, size

    def publish(self, manifest: Manifest) -> str:
        """Make an artifact visible: its blobs are here, now its manifest, then the recipe.

        Returns:
            The artifact's digest.

        Raises:
            CorruptArtifactError: A blob that the manifest names is not in the store.
        """
        artifact = manifest.digest
        for entry in manifest.files:
            self._check_size(entry)
        self._check_locations(StoredArtifact(manifest=manifest, blobs=self.layout.blobs))
        with storing(self.root):
            path = self.layout.manifests / f"{artifact}.json"
            if not path.is_file():  # the same content from another recipe keeps its first lineage
                content = manifest.model_dump_json(indent=1).encode()
                write_atomically(path, content, scratch=self.layout.tmp, mode=0o444)
        self.point(manifest.recipe, artifact)
        return artifact

    def point(self, recipe: str, artifact: str) -> None:
        """Say what a recipe was built into."""
        pointer = json.dumps({"artifact": artifact}).encode()
        with storing(self.root):
            path = self.layout.recipes / f"{recipe}.json"
            write_atomically(path, pointer, scratch=self.layout.tmp)

    def complete(self, artifact: str, quality: Quality) -> None:
        """Add the figures of an artifact that was published unmeasured; its digest has no part.

        Raises:
            CorruptArtifactError: There is no such artifact.
        """
        content = self.manifest(artifact).measured(quality).model_dump_json(indent=1).encode()
        path = self.layout.manifests / f"{artifact}.json"
        with storing(self.root):
            write_atomically(path, content, scratch=self.layout.tmp, mode=0o444)

    def forget(self, artifact: str) -> None:
        """Take an artifact's manifest away, so that it is built again; its blobs stay."""
        with storing(self.root):
            (self.layout.manifests / f"{artifact}.json").unlink(missing_ok=True)

    def _check_size(self, entry: FileEntry) -> Path:
        if not is_sha256(entry.sha256):
            raise CorruptArtifactError(f"The manifest gives {entry.name} no proper SHA-256.")
        path = self.layout.blobs / entry.sha256
        if path.is_symlink() or not path.is_file():
            raise CorruptArtifactError(
                f"The file {entry.name} of the artifact is missing: {path} is no regular file.",
                remedy=REBUILD,
            )
        if (size := path.stat().st_size) != entry.size_bytes:
            raise CorruptArtifactError(
                f"The file {entry.name} ({path}) has {size} bytes instead of {entry.size_bytes}.",
                remedy=REBUILD,
            )
        return path

    def _check_hash(self, entry: FileEntry) -> None:
        path = self.layout.blobs / entry.sha256
        if sha256_file(path) != entry.sha256:
            raise CorruptArtifactError(
                f"The file {entry.name} ({path}) has been changed: its SHA-256 is another.",
                remedy=REBUILD,
            )

    def _check_locations(self, stored: StoredArtifact) -> None:
        """Refuse a model whose weights lie anywhere but in this artifact's own blobs."""
        own = {entry.sha256 for entry in stored.manifest.files}
        for entry in stored.manifest.files:
            if not entry.name.endswith(".onnx"):
                continue
            for location in external_locations(stored.path(entry.name)):
                if location not in own:
                    raise CorruptArtifactError(
                        f"{entry.name} refers to {location!r}, which is no file of its artifact.",
                        remedy=REBUILD,
                    )
        forms = stored.manifest.graph.forms
        if forms is not None and forms.prompts not in own:
            raise CorruptArtifactError(
                f"The graph for prompts, {forms.prompts!r}, is no file of its artifact.",
                remedy=REBUILD,
            )

    def _remember(self, record: Path, seen: dict[str, Any]) -> None:
        # The record only saves the next start a hash: nothing about it may stop this one.
        with contextlib.suppress(OSError):
            record.parent.mkdir(exist_ok=True)
            write_atomically(record, json.dumps(seen).encode(), scratch=self.layout.tmp)


def parse_manifest(content: bytes, place: str, remedy: str) -> Manifest:
    """Read a manifest.

    Args:
        content: The JSON.
        place: What to call it in errors.
        remedy: What to do about one that is damaged.

    Raises:
        FormatError: It is of another version's format.
        CorruptArtifactError: It is none.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        if (found := _format_of(content)) != FORMAT:
            raise FormatError(
                f"The artifact of {place} is of format {found}, and this version reads {FORMAT}.",
                remedy="Build it again with this version: `inference-unlimited build CONFIG`.",
            ) from error
        raise CorruptArtifactError(
            f"The manifest {place} cannot be read: {error.errors()[0]['msg']}.", remedy=remedy
        ) from error


def _format_of(content: bytes) -> int:
    """What a manifest says that it is; this version's where it says nothing that can be read."""
    try:
        found = json.loads(content)["format"]
    except (ValueError, KeyError, TypeError):
        return FORMAT
    return found if isinstance(found, int) else FORMAT


def _read_record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):  # no record: the hashes are checked instead
        return {}
    return content if isinstance(content, dict) else {}
