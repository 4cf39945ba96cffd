"""Optimized once, published, and served elsewhere: real commands and an S3 server on loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifacts.store import Store
from protos import inference_pb2 as pb
from server.comparison.server_process import ROOT

REMOTE = "s3://artifacts/demo"
VARIANTS: dict[str, Any] = {
    "baseline": [],
    "int4": [{"quantize": {"method": "weight_only", "bits": 4}}],
}
REQUEST = pb.GenerateRequest(
    variant="int4",
    text="def main():",
    sampling=pb.SamplingParameters(max_tokens=8, ignore_eos=True, temperature=0),
)


def build(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.cli", "build", str(config)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture
def published(bucket: Any, own_store: Path, write_config: Any) -> Any:
    """The bucket, into which the demo's variants were published from a store that has them."""
    config = write_config(model="demo", variants=VARIANTS, store=str(own_store), remote=REMOTE)
    done = build(config)
    assert done.returncode == 0, done.stderr
    return bucket


def test_an_empty_store_is_filled_from_the_bucket(
    published: Any, launch: Any, tmp_path: Path, *, write_config: Any, stub: Any
) -> None:
    """By a server that would take a minute to build; then nobody need be asked."""
    store = tmp_path / "empty"
    content = {"model": "demo", "variants": VARIANTS, "store": str(store)}
    server = launch(write_config(**content, remote=REMOTE))
    server.wait_ready()
    first = stub(server).Complete(REQUEST, timeout=60)
    assert first.finish.usage.completion_tokens == 8
    assert not list((store / "stages").iterdir())  # nothing was made here
    published.rm("artifacts/demo", recursive=True)
    again = launch(write_config(**content, remote=REMOTE, offline=True))
    again.wait_ready()
    assert list(stub(again).Complete(REQUEST, timeout=60).token_ids) == list(first.token_ids)


def test_a_damaged_object_is_never_served(
    published: Any, launch: Any, tmp_path: Path, *, write_config: Any
) -> None:
    """Whoever can build does so; the log says why."""
    blobs = published.ls("artifacts/demo/blobs", detail=True)
    largest = max(blobs, key=lambda one: one["size"])
    content = bytearray(published.cat_file(largest["name"]))
    content[-1] ^= 1
    published.pipe_file(largest["name"], bytes(content))
    store = tmp_path / "empty"
    evaluation = {"text": str(write_few(tmp_path))}
    config = write_config(
        model="demo",
        variants={"baseline": []},
        store=str(store),
        remote=REMOTE,
        evaluation=evaluation,
    )
    server = launch(config)
    server.wait_ready()
    stored = Store(store)
    (artifact,) = (path.stem for path in stored.layout.manifests.iterdir())
    stored.open(artifact, verify=True)
    assert list((store / "stages").iterdir())  # it was made here


def test_a_build_that_cannot_publish_fails(bucket: Any, own_store: Path, write_config: Any) -> None:
    """Else somebody would wait for it elsewhere."""
    del bucket
    config = write_config(
        model="demo", variants=VARIANTS, store=str(own_store), remote="s3://no-such-bucket/demo"
    )
    done = build(config)
    assert done.returncode == 1
    assert "no-such-bucket/demo cannot be used" in done.stderr
    assert "AWS_ENDPOINT_URL" in done.stderr


@pytest.mark.parametrize("address", ["http://x/y", "s3://", "artifacts"])
def test_what_is_no_object_store_is_a_config_error(address: str, write_config: Any) -> None:
    """Before anything is asked."""
    done = build(write_config(model="demo", variants=VARIANTS, remote=address))
    assert done.returncode == 2
    assert "remote" in done.stderr


def write_few(folder: Path) -> Path:
    """A text that is measured on quickly."""
    lines = (ROOT / "demo" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    (path := folder / "few.jsonl").write_text("\n".join(lines[:2]), encoding="utf-8")
    return path
