"""Our application on a Ray cluster of two nodes; ``make ray-test`` makes a network for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from benchmarks.ray_cluster import TARGET, serving, two_nodes
from protos import inference_pb2_grpc

VARIANTS: dict[str, Any] = {"baseline": [], "int8": [{"quantize": {"method": "dynamic"}}]}


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants of the demo, in a store that was filled before."""
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    content = {
        "model": "demo",
        "variants": VARIANTS,
        "traffic": {"baseline": 1},
        "store": os.environ["RAY_TEST_STORE"],
        "offline": True,
        "engine": {"slots": 4},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prometheus") / "targets"


@pytest.fixture(scope="session")
def application(config: Path, targets: Path) -> Iterator[None]:
    """Ours, with two replicas of each variant at least."""
    with (
        two_nodes(),
        serving(config, targets=str(targets), min_replicas=2, max_replicas=3, cpus=0.25),
    ):
        yield


@pytest.fixture
def stub(application: None) -> Iterator[Any]:
    del application
    with grpc.insecure_channel(TARGET) as channel:
        yield inference_pb2_grpc.InferenceStub(channel)
