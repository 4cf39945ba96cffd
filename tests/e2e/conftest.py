"""Real servers over the demo model: one store, built once by real children."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from protos import admin_pb2_grpc, inference_pb2_grpc
from server.comparison.server_process import ServerProcess

Launch = Callable[..., ServerProcess]


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Write a config file."""

    def write(**content: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start servers that are gone at the end of the test."""
    with ExitStack() as stack:
        count = 0

        def start(config: Path | None, *arguments: str, **options: Any) -> ServerProcess:
            nonlocal count
            count += 1
            stderr = tmp_path / f"server-{count}.log"
            return stack.enter_context(ServerProcess(config, *arguments, stderr=stderr, **options))

        yield start


@pytest.fixture
def own_store(demo_store: Path, tmp_path: Path) -> Path:
    """A copy of the demo's store that a test may damage, hard links between its files kept."""
    store = tmp_path / "store"
    subprocess.run(["cp", "-a", str(demo_store), str(store)], check=True)
    return store


@pytest.fixture
def stub() -> Iterator[Callable[[ServerProcess], Any]]:
    """Connect to servers."""
    with ExitStack() as stack:

        def connect(server: ServerProcess) -> Any:
            channel = stack.enter_context(grpc.insecure_channel(server.target))
            return inference_pb2_grpc.InferenceStub(channel)

        yield connect


@dataclass(frozen=True)
class Changing:
    """A server whose variants and traffic are changed while it runs, and who may ask it."""

    server: ServerProcess
    ask: Any
    admin: Any
    channel: grpc.Channel
    store: Path
    roots: Path

    def metric(self, family: str, **labels: str) -> float | None:
        """The value of a series; None where there is none."""
        from prometheus_client.parser import text_string_to_metric_families

        for found in text_string_to_metric_families(self.server.get("/metrics")[1]):
            for sample in found.samples:
                if sample.name == family and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None


@pytest.fixture(scope="module")
def changing(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    """One that serves the original and its int8, over a store that it may write to."""
    folder = tmp_path_factory.mktemp("changing")
    store, roots = folder / "store", folder / "models"
    subprocess.run(["cp", "-a", str(demo_store), str(store)], check=True)
    roots.mkdir()
    content = {
        "model": "demo",
        "store": str(store),
        "evaluation": {"text": str(demo_store.parent / "few.jsonl")},
        "variants": {"baseline": [], "int8": [{"quantize": {"method": "dynamic"}}]},
        "admin": {"roots": [str(roots)]},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    with ServerProcess(config, stderr=folder / "server.log") as server:
        server.wait_ready()
        with grpc.insecure_channel(server.target) as channel:
            ask, admin = (
                inference_pb2_grpc.InferenceStub(channel),
                admin_pb2_grpc.AdminStub(channel),
            )
            yield Changing(server, ask, admin, channel, store, roots)
        assert server.stop() == 0
        assert "Traceback" not in server.log
