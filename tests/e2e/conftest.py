"""Real servers over the demo model: one store, built once by real children."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from protos import inference_pb2_grpc
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
