"""Fixtures that tests of several packages share."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from artifacts.manifest import GraphSpec


@pytest.fixture(autouse=True)
def _gradual_underflow() -> Iterator[None]:
    """Keep a test that lets a library switch the thread to flush-to-zero from changing the next.

    Seen once, in one order of the tests on one machine: compiled code that is loaded or run in the
    main thread may leave that mode behind, and hypothesis then refuses to draw floats.
    """
    yield
    if sys.float_info.min / 2 == 0.0:
        ctypes.CDLL(None).fesetenv(ctypes.c_void_p(-1))  # glibc's FE_DFL_ENV
        warnings.warn("Denormal numbers were flushed to zero after this test.", stacklevel=1)


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads that wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a random Llama (hidden 64, 2 layers, vocabulary 256) as a Hugging Face folder."""
    from benchmarks import zoo

    return zoo.write_model(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def tiny_llama_export(
    tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, GraphSpec]:
    """Give the tiny Llama as a verified graph."""
    from optimizers.export import export

    folder = tmp_path_factory.mktemp("export")
    exported = export(tiny_llama_folder, folder, progress=lambda *_: None)
    return exported.model, exported.graph


@pytest.fixture(scope="session")
def tiny_llama_int8_cache(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, GraphSpec]:
    """Give the same graph with its key-value cache in int8."""
    from tests.optimizers.onnx_stage import run_stage

    folder = tmp_path_factory.mktemp("int8-cache")
    outcome = run_stage({"method": "kv_cache"}, *tiny_llama_export, folder)
    assert outcome.graph is not None
    return folder / "model.onnx", outcome.graph


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """Give the address of an S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(object_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give the files of an empty bucket, ``artifacts``; the environment says where and who."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    files.mkdir("artifacts")
    yield files
    files.rm("artifacts", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


DEMO_CONFIG = Path(__file__).parents[1] / "demo" / "config.yaml"


@pytest.fixture(scope="session")
def demo_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a store with the demo's three variants, built by the real optimizer in real children.

    Treat it as read-only: copy it to damage it. Beside it lies ``few.jsonl``, what it was measured
    on: less text than the demo has, which is quicker and no part of what is built.
    """
    folder = tmp_path_factory.mktemp("demo")
    # Workers that run tests at the same time share one build, and have a copy each.
    beside = tmp_path_factory.getbasetemp()
    shared = (beside.parent if "PYTEST_XDIST_WORKER" in os.environ else beside) / "demo-built"
    with FileLock(shared.with_suffix(".lock")):
        if not shared.exists():
            _build_demo(folder / "draft")
            (folder / "draft").rename(shared)
    parts = [str(shared / "store"), str(shared / "few.jsonl")]
    subprocess.run(["cp", "-a", *parts, str(folder)], check=True)
    return folder / "store"


def _build_demo(folder: Path) -> None:
    folder.mkdir()
    texts = DEMO_CONFIG.with_name("heldout.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "few.jsonl").write_text("\n".join(texts[:4]), encoding="utf-8")
    environment = {
        "INFERENCE_UNLIMITED_STORE": str(folder / "store"),
        "INFERENCE_UNLIMITED_EVALUATION__TEXT": str(folder / "few.jsonl"),
    }
    build = subprocess.run(
        [sys.executable, "-m", "server.cli", "build", str(DEMO_CONFIG)],
        env={**os.environ, **environment},
        cwd=DEMO_CONFIG.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
