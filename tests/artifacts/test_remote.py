"""An object store beside the local one, against a real S3 server on loopback."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import s3fs

from artifacts.errors import CorruptArtifactError, FormatError
from artifacts.remote import Remote, RemoteError
from artifacts.store import Store

BUCKET = "artifacts"  # of the fixture `bucket`


@pytest.fixture
def remote(bucket: Any) -> Remote:
    del bucket
    return Remote(f"s3://{BUCKET}/models/")


@pytest.fixture
def filled(demo_store: Path, tmp_path: Path) -> tuple[Store, str, str]:
    """A store with the demo's variants, one of their recipes, and its artifact."""
    shutil.copytree(demo_store, tmp_path / "filled")
    store = Store(tmp_path / "filled")
    recipe = min(path.stem for path in store.layout.recipes.iterdir())
    artifact = store.find(recipe)
    assert artifact is not None
    return store, recipe, artifact


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    store = Store(tmp_path / "empty")
    store.layout.create()
    return store


def nobody(fraction: float, message: str) -> None:
    assert 0 <= fraction <= 1
    assert message


def test_what_is_published_is_fetched_whole(
    remote: Remote, filled: tuple[Store, str, str], empty: Store
) -> None:
    """Under the recipe it was built for, byte for byte."""
    store, recipe, artifact = filled
    assert remote.find(recipe) is None
    assert remote.pull(recipe, empty, nobody) is None
    remote.push(recipe, artifact, store)
    assert remote.find(recipe) == artifact
    assert remote.pull(recipe, empty, nobody) == artifact
    assert empty.find(recipe) == artifact
    fetched = empty.open(artifact, verify=True)
    assert fetched.manifest == store.manifest(artifact)
    assert not list(empty.layout.tmp.iterdir())


def test_nothing_is_sent_or_fetched_twice(
    remote: Remote, bucket: Any, filled: tuple[Store, str, str], empty: Store
) -> None:
    """What is there already stays as it is."""
    store, recipe, artifact = filled
    remote.push(recipe, artifact, store)
    before = {path: bucket.info(path)["LastModified"] for path in bucket.find(BUCKET)}
    remote.push(recipe, artifact, store)
    assert {path: bucket.info(path)["LastModified"] for path in bucket.find(BUCKET)} == before
    remote.pull(recipe, empty, nobody)
    bucket.rm(f"{BUCKET}/models/blobs", recursive=True)
    assert remote.pull(recipe, empty, nobody) == artifact


def test_a_recipe_is_visible_only_when_its_files_are(
    remote: Remote, bucket: Any, filled: tuple[Store, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever publishes may be killed at any moment."""
    store, recipe, artifact = filled
    written: list[str] = []
    pipe, put = type(bucket).pipe_file, type(bucket).put_file

    def note_pipe(files: Any, place: str, content: bytes, **options: Any) -> Any:
        written.append(place)
        return pipe(files, place, content, **options)

    def note_put(files: Any, local: str, place: str, **options: Any) -> Any:
        written.append(place)
        return put(files, local, place, **options)

    monkeypatch.setattr(remote._files, "pipe_file", note_pipe.__get__(remote._files))
    monkeypatch.setattr(remote._files, "put_file", note_put.__get__(remote._files))
    remote.push(recipe, artifact, store)
    kinds = [place.split("/")[-2] for place in written]
    assert kinds[-2:] == ["manifests", "recipes"]
    assert set(kinds[:-2]) == {"blobs"}
    assert len(kinds[:-2]) == len({entry.sha256 for entry in store.manifest(artifact).files})


def test_many_may_publish_at_a_time(
    remote: Remote, filled: tuple[Store, str, str], empty: Store
) -> None:
    """And what they leave is whole."""
    store, recipe, artifact = filled
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(remote.push, recipe, artifact, store) for _ in range(6)]:
            done.result()
    assert remote.pull(recipe, empty, nobody) == artifact
    empty.open(artifact, verify=True)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_object_is_refused(
    remote: Remote, bucket: Any, filled: tuple[Store, str, str], empty: Store, damage: str
) -> None:
    """By hash, size or absence; nothing of it is visible in the local store."""
    store, recipe, artifact = filled
    remote.push(recipe, artifact, store)
    entry = max(store.manifest(artifact).files, key=lambda one: one.size_bytes)
    place = f"{BUCKET}/models/blobs/{entry.sha256}"
    content = bytearray(bucket.cat_file(place))
    content[7] ^= 1
    match damage:
        case "changed":
            bucket.pipe_file(place, bytes(content))
        case "cut":
            bucket.pipe_file(place, bytes(content[:-1]))
        case _:
            bucket.rm_file(place)
    with pytest.raises(CorruptArtifactError, match=entry.name) as caught:
        remote.pull(recipe, empty, nobody)
    assert "publish again" in caught.value.remedy
    assert empty.find(recipe) is None
    assert not list(empty.layout.tmp.iterdir())


def test_a_manifest_that_describes_another_artifact_is_refused(
    remote: Remote, bucket: Any, filled: tuple[Store, str, str], empty: Store
) -> None:
    """Whoever can write a manifest cannot pass one artifact off as another."""
    store, recipe, artifact = filled
    remote.push(recipe, artifact, store)
    place = f"{BUCKET}/models/manifests/{artifact}.json"
    other = json.loads(bucket.cat_file(place))
    other["generation"] = {**(other["generation"] or {}), "temperature": 1.5}
    bucket.pipe_file(place, json.dumps(other).encode())
    with pytest.raises(CorruptArtifactError):
        remote.pull(recipe, empty, nobody)


def test_an_artifact_of_another_format_is_replaced_by_whoever_publishes(
    remote: Remote, bucket: Any, filled: tuple[Store, str, str], empty: Store
) -> None:
    """Until then it is refused, since only the version that left it there can read it."""
    store, recipe, artifact = filled
    remote.push(recipe, artifact, store)
    place = f"{BUCKET}/models/manifests/{artifact}.json"
    bucket.pipe_file(
        place, json.dumps({**json.loads(bucket.cat_file(place)), "format": 2}).encode()
    )
    with pytest.raises(FormatError, match="is of format 2"):
        remote.pull(recipe, empty, nobody)
    remote.push(recipe, artifact, store)
    assert remote.pull(recipe, empty, nobody) == artifact


@pytest.mark.parametrize(
    "address", ["", "s3://", "bucket/prefix", "http://x/y", "file:///tmp/x", "simplecache::s3://a"]
)
def test_what_is_no_object_store_is_refused(address: str) -> None:
    """Of all that fsspec can open, only what writes an object whole or not at all."""
    with pytest.raises(RemoteError, match="no object store"):
        Remote(address)


def test_failures_of_the_transport_are_told(
    bucket: Any, filled: tuple[Store, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that is not there, and an endpoint where nobody is."""
    del bucket
    store, recipe, artifact = filled
    with pytest.raises(RemoteError, match="cannot be used"):
        Remote("s3://no-such-bucket/models").push(recipe, artifact, store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RemoteError, match="cannot be used") as caught:
        Remote(f"s3://{BUCKET}/models").find(recipe)
    assert "AWS_ENDPOINT_URL" in caught.value.remedy
