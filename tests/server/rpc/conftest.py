"""A real gRPC server on a loopback port, and real clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from protos import inference_pb2_grpc as pb_grpc
from server.rpc.health import HealthService
from server.rpc.server import create_server

if TYPE_CHECKING:
    from tests.server.conftest import Bench


@pytest.fixture
def health() -> HealthService:
    """What the app would drive."""
    return HealthService()


@pytest.fixture
async def port(bench: Bench, health: HealthService) -> AsyncIterator[int]:
    """The port of a server over the bench's core."""
    server, port = create_server(bench.core, health, host="127.0.0.1", port=0)
    await server.start()
    yield port
    health.close()
    await server.stop(0)


@pytest.fixture
async def channel(port: int) -> AsyncIterator[grpc.aio.Channel]:
    """A client's channel."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    """A client of the API."""
    return pb_grpc.InferenceStub(channel)
