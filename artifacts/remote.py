"""An object store beside the local one: what is missing here is fetched, what is made is published.

Owns the order in which objects are written, the proof of what is read, and how the transport's
errors are told. The local store keeps a copy of all that it takes from there, so a start that finds
everything asks nobody. Objects lie under the local store's names, by content hash, and each is
written whole or not at all, so any number of writers may publish at a time: what two of them write
under one name is the same. Knows nothing of how artifacts are made, nor of credentials: fsspec
finds those, and the endpoint, in the environment (``AWS_*``).
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from artifacts.digest import is_sha256, sha256_file
from artifacts.errors import ArtifactError, CorruptArtifactError, FormatError
from artifacts.layout import Layout
from artifacts.manifest import FileEntry, Manifest
from artifacts.store import Store, parse_manifest

SCHEMES = ("s3",)
"""Of addresses that can be given; others of fsspec's have weaker promises on what a write is."""

_LARGEST_TEXT = 16 << 20  # bytes of a manifest, or a pointer
_MEND = "Remove the object and publish again with `inference-unlimited build` from a sound store."

Report = Callable[[float, str], None]


class RemoteError(ArtifactError):
    """The object store cannot be reached, or does not let this user do what is wanted."""

    code = "remote"


class Remote:
    """The artifacts below one address.

    Args:
        address: ``s3://BUCKET/PREFIX``.

    Raises:
        RemoteError: The address is none, or what speaks to it is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        scheme, separator, rest = self.address.partition("://")
        if scheme not in SCHEMES or not separator or not rest or "::" in address:
            raise RemoteError(
                f"{address!r} is no object store.", remedy="Give an address as s3://BUCKET/PREFIX."
            )
        try:
            import s3fs
        except ModuleNotFoundError as error:
            raise RemoteError(
                f"{self.address} cannot be asked: s3fs is not installed.",
                remedy='Install it: pip install "inference-unlimited[remote]".',
            ) from error
        # What another writer has published a moment ago is to be seen.
        self._files: Any = s3fs.S3FileSystem(use_listings_cache=False)
        self._layout = Layout(Path(rest))

    def find(self, recipe: str) -> str | None:
        """Look up the artifact (digest) that a recipe was built into, if it is there.

        Raises:
            RemoteError: Nobody answers, or not to this user.
        """
        content = self._read(self._pointer(recipe))
        try:
            artifact = None if content is None else json.loads(content)["artifact"]
        except (ValueError, KeyError, TypeError):
            return None
        return artifact if isinstance(artifact, str) and is_sha256(artifact) else None

    def pull(self, recipe: str, store: Store, report: Report) -> str | None:
        """Bring the artifact of a recipe into a local store, if it is there.

        Args:
            recipe: Its digest.
            store: Where to; visible there only once all of it has come.
            report: Told how far it is, 0..1.

        Returns:
            The artifact's digest; None where there is none.

        Raises:
            CorruptArtifactError: What is there is not what its names say.
            RemoteError: Nobody answers, or not to this user.
            StoreError: The local store cannot be written.
        """
        artifact = self.find(recipe)
        manifest = None if artifact is None else self._manifest(artifact)
        if artifact is None or manifest is None:
            return None
        whole = sum(entry.size_bytes for entry in manifest.files)
        done = 0
        for entry in manifest.files:
            report(done / max(whole, 1), f"fetching {entry.name} from {self.address}")
            self._fetch(entry, store)
            done += entry.size_bytes
        store.publish(manifest)
        store.point(recipe, artifact)
        return artifact

    def push(self, recipe: str, artifact: str, store: Store) -> None:
        """Publish a local artifact: its files, then its manifest, then the recipe.

        Raises:
            RemoteError: Nobody answers, or not to this user.
            ArtifactError: The local artifact is not whole.
        """
        stored = store.open(artifact)
        for entry in stored.manifest.files:
            self._send(entry, stored.path(entry.name))
        try:
            there = self._manifest(artifact)
        except FormatError:  # of another version, whose build of the same content is replaced
            there = None
        # The first lineage stays, as in a local store; figures that it lacks are added.
        if there is None or (there.quality is None and stored.manifest.quality is not None):
            content = stored.manifest.model_dump_json(indent=1).encode()
            self._write(f"{self._layout.manifests}/{artifact}.json", content)
        if self.find(recipe) != artifact:
            pointer = json.dumps({"artifact": artifact}).encode()
            self._write(self._pointer(recipe), pointer)

    def _pointer(self, recipe: str) -> str:
        if not is_sha256(recipe):
            raise RemoteError(f"{recipe!r} is no recipe.")
        return f"{self._layout.recipes}/{recipe}.json"

    def _manifest(self, artifact: str) -> Manifest | None:
        content = self._read(f"{self._layout.manifests}/{artifact}.json")
        if content is None:
            return None
        place = f"{self.address}/manifests/{artifact[:12]}"
        manifest = parse_manifest(content, place, _MEND)
        if manifest.digest != artifact:
            raise CorruptArtifactError(
                f"The manifest of {artifact[:12]} in {self.address} describes "
                f"{manifest.digest[:12]}.",
                remedy=_MEND,
            )
        return manifest

    def _fetch(self, entry: FileEntry, store: Store) -> None:
        """Bring one file, unless it is here; it counts only with the hash that it should have."""
        if not is_sha256(entry.sha256):
            raise CorruptArtifactError(f"The manifest gives {entry.name} no proper SHA-256.")
        if store.has_blob(entry.sha256):
            return
        place = f"{self._layout.blobs}/{entry.sha256}"
        size = self._size(place)
        if size != entry.size_bytes:
            raise CorruptArtifactError(
                f"The file {entry.name} in {self.address} has "
                f"{'no' if size is None else size} bytes instead of {entry.size_bytes}.",
                remedy=_MEND,
            )
        draft = store.layout.tmp / f"{entry.sha256}.{secrets.token_hex(8)}"
        try:
            with self._telling():
                self._files.get_file(place, str(draft))
            if sha256_file(draft) != entry.sha256:
                raise CorruptArtifactError(
                    f"The file {entry.name} in {self.address} has been changed: its SHA-256 is "
                    "another.",
                    remedy=_MEND,
                )
            store.add_blob(draft, is_spare=True)
        finally:
            draft.unlink(missing_ok=True)

    def _send(self, entry: FileEntry, path: Path) -> None:
        place = f"{self._layout.blobs}/{entry.sha256}"
        if self._size(place) != entry.size_bytes:
            with self._telling():
                self._files.put_file(str(path), place)

    def _size(self, place: str) -> int | None:
        with self._telling():
            try:
                return int(self._files.info(place)["size"])
            except FileNotFoundError:
                return None

    def _read(self, place: str) -> bytes | None:
        with self._telling():
            try:
                content: bytes = self._files.cat_file(place, start=0, end=_LARGEST_TEXT)
            except FileNotFoundError:
                return None
        return content

    def _write(self, place: str, content: bytes) -> None:
        with self._telling():
            self._files.pipe_file(place, content)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn what the transport says into a sentence and a remedy."""
        try:
            yield
        except Exception as error:  # the client's errors and its transport's have no common base
            raise RemoteError(
                f"{self.address} cannot be used: {type(error).__name__}: {error}.",
                remedy="Check the bucket, AWS_ENDPOINT_URL and the credentials, or set "
                "`offline: true` to go by the local store alone.",
            ) from error
