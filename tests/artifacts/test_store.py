"""The store: what readers see, what writers may leave behind, what damage is called."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from artifacts.digest import sha256_file
from artifacts.errors import CorruptArtifactError, FormatError, StoreError
from artifacts.layout import Layout, default_root
from artifacts.locks import building, exclusive
from artifacts.manifest import (
    ExportRecord,
    FileEntry,
    GenerationDefaults,
    GraphSpec,
    Manifest,
    ModelSource,
)
from artifacts.prune import prune
from artifacts.store import Store

RECIPE = "a" * 64


def _model(path: Path, location: str) -> Path:
    """Write a model whose weights lie in the file ``location``."""
    tensor = TensorProto(name="w", dims=[2], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    graph = helper.make_graph([], "g", [], [], [tensor])
    onnx.save(helper.make_model(graph), path)
    return path


def _publish(
    store: Store, folder: Path, *, recipe: str = RECIPE, content: bytes = b"12345678", to: str = ""
) -> str:
    store.layout.create()
    weights = folder / "weights"
    weights.write_bytes(content)
    digest, size = store.add_blob(weights)
    files = [FileEntry(name="model.onnx.data", size_bytes=size, sha256=digest)]
    digest, size = store.add_blob(_model(folder / "model.onnx", to or digest))
    files.append(FileEntry(name="model.onnx", size_bytes=size, sha256=digest))
    graph = GraphSpec(form="packed", vocab_size=2, max_length=8, layers=(), inputs=())
    export = ExportRecord(exporter="mobius", max_logit_error=0, logit_scale=1, tokens_compared=1)
    return store.publish(
        Manifest(
            recipe=recipe,
            model=ModelSource(id="m", revision="r", architecture="A"),
            chain=(),
            graph=graph,
            generation=GenerationDefaults(),
            files=tuple(files),
            export=export,
            lineage=(),
            libraries={},
            created="2026-11-23T00:00:00+00:00",
        )
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_published_artifact_is_found_and_opened_in_place(store: Store, tmp_path: Path) -> None:
    """Its files lie flat among the blobs, and the model names its weights by their hash."""
    artifact = _publish(store, tmp_path)
    assert store.find(RECIPE) == artifact
    stored = store.open(artifact, verify=True)
    assert stored.path("model.onnx").parent == stored.path("model.onnx.data").parent
    assert sha256_file(stored.path("model.onnx.data")) == stored.path("model.onnx.data").name
    assert stored.path("model.onnx").stat().st_mode & 0o777 == 0o444
    assert store.root.stat().st_mode & 0o777 == 0o700


def test_what_was_never_built_is_not_found(store: Store) -> None:
    """An empty, even a missing store answers; what is no digest is no recipe."""
    assert store.find(RECIPE) is None
    assert store.find("../../etc/passwd") is None
    with pytest.raises(CorruptArtifactError, match="no artifact"):
        store.open("b" * 64)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_missing_file_is_named(store: Store, tmp_path: Path, name: str) -> None:
    """The error says which file and what to do."""
    artifact = _publish(store, tmp_path)
    store.open(artifact).path(name).unlink()
    with pytest.raises(CorruptArtifactError, match=name) as caught:
        store.open(artifact)
    assert caught.value.remedy


def test_a_short_file_is_noticed_without_hashing(store: Store, tmp_path: Path) -> None:
    """A size tells more quickly than a hash."""
    artifact = _publish(store, tmp_path)
    path = store.open(artifact).path("model.onnx.data")
    path.chmod(0o644)
    path.write_bytes(b"1234")
    with pytest.raises(CorruptArtifactError, match=r"4 bytes instead of 8"):
        store.open(artifact)


def test_a_changed_file_is_noticed_by_its_mtime(store: Store, tmp_path: Path) -> None:
    """The local record sends a touched file through its hash again."""
    artifact = _publish(store, tmp_path)
    path = store.open(artifact).path("model.onnx.data")
    path.chmod(0o644)
    path.write_bytes(b"87654321")
    with pytest.raises(CorruptArtifactError, match="changed"):
        store.open(artifact)


def test_a_change_behind_the_records_back_needs_verify(store: Store, tmp_path: Path) -> None:
    """Size and mtime can be forged; the whole hash cannot."""
    artifact = _publish(store, tmp_path)
    path = store.open(artifact).path("model.onnx.data")
    state = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"87654321")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    store.open(artifact)
    with pytest.raises(CorruptArtifactError, match="changed"):
        store.open(artifact, verify=True)


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EIO, "Check the disk"), (errno.EACCES, "read access")]
)
@pytest.mark.parametrize("reader", ["sha256_file", "external_locations", "Path.read_bytes"])
def test_a_file_that_cannot_be_read_is_told_with_a_remedy(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    reader: str,
    number: int,
    remedy: str,
) -> None:
    """A disk that fails and a file of somebody else's are not damage, and no bug either."""
    artifact = _publish(store, tmp_path)

    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(f"artifacts.store.{reader}", fail)
    with pytest.raises(StoreError, match=os.strerror(number)) as caught:
        store.open(artifact, verify=True)
    assert remedy in caught.value.remedy


def test_a_link_among_the_blobs_is_refused(store: Store, tmp_path: Path) -> None:
    """A store reads its own files only."""
    artifact = _publish(store, tmp_path)
    path = store.open(artifact).path("model.onnx.data")
    path.unlink()
    path.symlink_to(tmp_path / "weights")
    with pytest.raises(CorruptArtifactError, match="no regular file"):
        store.open(artifact)


@pytest.mark.parametrize("location", ["../../../etc/passwd", "/etc/passwd", "other", "b" * 64])
def test_weights_outside_the_artifact_are_refused(
    store: Store, tmp_path: Path, location: str
) -> None:
    """A model cannot make a server read what is not its own."""
    with pytest.raises(CorruptArtifactError, match="no file of its artifact"):
        _publish(store, tmp_path, to=location)
    assert store.find(RECIPE) is None


def test_a_forged_manifest_is_refused(store: Store, tmp_path: Path) -> None:
    """A manifest must describe the artifact that its name says."""
    artifact = _publish(store, tmp_path)
    path = store.layout.manifests / f"{artifact}.json"
    content = json.loads(path.read_bytes())
    content["graph"]["max_length"] = 9
    path.chmod(0o644)
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptArtifactError, match="describes artifact"):
        store.open(artifact)
    path.write_text("{")
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        store.open(artifact)


def test_a_store_without_write_access_is_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only mount sizes are checked and nothing is written."""
    artifact = _publish(store, tmp_path)
    monkeypatch.setattr("artifacts.store.os.access", lambda *_: False)
    before = sorted(path for path in store.root.rglob("*"))
    assert store.open(artifact).manifest.recipe == RECIPE
    assert sorted(path for path in store.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.ENOSPC, "full"), (errno.EDQUOT, "full"), (errno.EROFS, "written")],
)
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_full_disk_leaves_nothing_half_written(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    number: int,
    word: str,
    at: int,
) -> None:
    """Whichever write fails, the error has a remedy and no reader sees an artifact."""
    store.layout.create()
    calls = 0
    real = os.fsync

    def fail(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr("artifacts.digest.os.fsync", fail)
    with pytest.raises(StoreError, match=word) as caught:
        _publish(store, tmp_path)
    assert caught.value.remedy
    assert calls == at + 1
    assert store.find(RECIPE) is None
    assert list(store.layout.tmp.iterdir()) == []
    monkeypatch.undo()
    assert store.open(_publish(store, tmp_path), verify=True)


def test_the_same_content_is_kept_once(store: Store, tmp_path: Path) -> None:
    """Two recipes may lead to one artifact."""
    first = _publish(store, tmp_path)
    assert _publish(store, tmp_path, recipe="c" * 64) == first
    assert store.find("c" * 64) == first
    assert len(list(store.layout.manifests.iterdir())) == 1


def test_a_damaged_blob_is_replaced_by_the_next_writer(store: Store, tmp_path: Path) -> None:
    """Building again mends what was damaged."""
    artifact = _publish(store, tmp_path)
    path = store.open(artifact).path("model.onnx.data")
    path.chmod(0o644)
    path.write_bytes(b"87654321")
    assert _publish(store, tmp_path) == artifact
    store.open(artifact, verify=True)


def test_the_root_comes_from_the_environment_or_the_home(tmp_path: Path) -> None:
    """One variable moves the store."""
    named = default_root({"INFERENCE_UNLIMITED_STORE": str(tmp_path), "HOME": "/h"})
    assert named == tmp_path
    assert default_root({"HOME": "/h"}) == Path("/h/.cache/inference-unlimited")


def test_a_root_that_is_a_file_is_told(tmp_path: Path) -> None:
    """A store that cannot be made is an error with a remedy, not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        Layout(tmp_path / "file" / "store").create()
    assert caught.value.remedy


def test_one_maker_per_thing(store: Store) -> None:
    """The second waits until the first is done."""
    store.layout.create()
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with exclusive(store.layout, "thing"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with exclusive(store.layout, "thing"):
        inside.set()
        thread.join(timeout=0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def _clutter(store: Store) -> None:
    """What builds leave: a draft, a blob without manifest, a stage's result, half a training."""
    (store.layout.tmp / "draft").write_bytes(b"x" * 10)
    (store.layout.blobs / ("d" * 64)).write_bytes(b"x" * 20)
    (store.layout.stages / "key").mkdir()
    (store.layout.stages / "key" / "model.onnx").write_bytes(b"x" * 30)
    (store.layout.training / "key").mkdir()
    (store.layout.training / "key" / "checkpoint").write_bytes(b"x" * 40)


def test_pruning_takes_what_no_manifest_needs(store: Store, tmp_path: Path) -> None:
    """Finished artifacts stay; a dry run only tells, and tells the same."""
    artifact = _publish(store, tmp_path)
    store.open(artifact)
    _clutter(store)
    told = prune(store, older_than_s=0, dry_run=True, clock=lambda: time.time() + 7200)
    assert (store.layout.tmp / "draft").exists()
    done = prune(store, older_than_s=0, dry_run=False, clock=lambda: time.time() + 7200)
    assert told == done
    assert done.size_bytes == 100
    assert {path.split("/")[0] for path in done.paths} == {"tmp", "blobs", "stages", "training"}
    store.open(artifact, verify=True)


def test_pruning_keeps_young_results(store: Store, tmp_path: Path) -> None:
    """Results between stages stay as long as they may save a build."""
    _publish(store, tmp_path)
    _clutter(store)
    prune(store, older_than_s=86_400, dry_run=False, clock=lambda: time.time() + 7200)
    assert (store.layout.stages / "key" / "model.onnx").exists()
    assert (store.layout.training / "key" / "checkpoint").exists()
    assert not (store.layout.tmp / "draft").exists()


def test_pruning_keeps_young_drafts(store: Store, tmp_path: Path) -> None:
    """A start that writes a small record holds no lock: its draft must not vanish under it."""
    _publish(store, tmp_path)
    _clutter(store)
    pruned = prune(store, older_than_s=0, dry_run=False, clock=lambda: time.time() + 3000)
    assert "stages/key" in pruned.paths
    assert (store.layout.tmp / "draft").exists()


def test_pruning_passes_over_what_has_vanished(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft becomes its record between being listed and being looked at, or removed."""
    _publish(store, tmp_path)
    _clutter(store)
    listed = list(store.layout.tmp.iterdir())
    (store.layout.tmp / "draft").unlink()
    real = Path.iterdir

    def stale(folder: Path) -> Iterator[Path]:
        return iter(listed) if folder == store.layout.tmp else real(folder)

    monkeypatch.setattr(Path, "iterdir", stale)
    prune(store, older_than_s=0, dry_run=False, clock=lambda: time.time() + 7200)
    monkeypatch.setattr("artifacts.prune._is_left", lambda *_: True)
    pruned = prune(store, older_than_s=0, dry_run=False, clock=lambda: time.time() + 7200)
    assert (pruned.paths, pruned.size_bytes) == (("tmp/draft",), 0)


def test_a_record_that_cannot_be_kept_stops_nobody(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves a later start some time and nothing more."""
    artifact = _publish(store, tmp_path)

    def vanish(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "the draft is gone")

    monkeypatch.setattr("artifacts.store.write_atomically", vanish)
    assert store.open(artifact).manifest.recipe == RECIPE


def test_pruning_recipes_takes_their_artifacts(store: Store, tmp_path: Path) -> None:
    """Whoever names the recipes to keep gets rid of the others, blobs included."""
    kept = _publish(store, tmp_path)
    lost = _publish(store, tmp_path, recipe="c" * 64, content=b"other")
    store.open(kept)
    store.open(lost)
    later = time.time() + 60
    prune(store, older_than_s=0, dry_run=False, keep_recipes={RECIPE}, clock=lambda: later)
    assert store.find("c" * 64) is None
    assert len(list(store.layout.blobs.iterdir())) == 2
    store.open(kept, verify=True)


def test_pruning_leaves_a_running_build_alone(store: Store, tmp_path: Path) -> None:
    """While a builder is at work nothing is removed, and the user is told why."""
    _publish(store, tmp_path)
    _clutter(store)
    with (
        building(store.layout),
        pytest.raises(StoreError, match="A build is using"),
    ):
        prune(store, older_than_s=0, dry_run=False)
    assert (store.layout.tmp / "draft").exists()


def test_an_artifact_of_another_format_is_refused_with_the_command(
    store: Store, tmp_path: Path
) -> None:
    """It is sound, and whoever wrote it may still serve it."""
    published = _publish(store, tmp_path)
    path = store.layout.manifests / f"{published}.json"
    content = json.loads(path.read_bytes())
    path.chmod(0o644)
    path.write_text(json.dumps({**content, "format": 2, "later": []}))
    with pytest.raises(FormatError, match="is of format 2, and this version reads 1") as caught:
        store.open(published)
    assert "`inference-unlimited build CONFIG`" in caught.value.remedy
