"""grpc.health.v1 and reflection, through the packages' own clients."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from server.errors import ListenError
from server.rpc.health import HealthService
from server.rpc.server import create_server

if TYPE_CHECKING:
    from tests.server.conftest import Bench

Serving = health_pb2.HealthCheckResponse.ServingStatus


@pytest.fixture
def checker(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def asked(name: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


async def test_nothing_serves_until_it_is_said(health: HealthService, checker: Any) -> None:
    """An open port is not health: NOT_SERVING first, then what was set, per name."""
    assert (await checker.Check(asked(""))).status == Serving.NOT_SERVING
    health.set("", serving=True)
    health.set("int8", serving=False)
    assert (await checker.Check(asked(""))).status == Serving.SERVING
    assert (await checker.Check(asked("int8"))).status == Serving.NOT_SERVING


async def test_an_unknown_name_is_not_found(health: HealthService, checker: Any) -> None:
    """Check lists the known names; Watch says SERVICE_UNKNOWN and goes on."""
    with pytest.raises(grpc.aio.AioRpcError, match="is unknown") as caught:
        await checker.Check(asked("later"))
    assert grpc.StatusCode.NOT_FOUND is caught.value.code()
    watch = checker.Watch(asked("later"))
    assert (await watch.read()).status == Serving.SERVICE_UNKNOWN
    health.set("later", serving=True)
    assert (await watch.read()).status == Serving.SERVING


async def test_watchers_hear_changes_also_when_another_leaves(
    health: HealthService, checker: Any
) -> None:
    """Two watch the same name, one leaves, and the other still hears of the next change."""
    first, second = checker.Watch(asked("")), checker.Watch(asked(""))
    for watch in (first, second):
        assert (await watch.read()).status == Serving.NOT_SERVING
    first.cancel()
    await asyncio.sleep(0.05)
    health.set("other", serving=True)  # a change of another name is not told
    health.set("", serving=True)
    assert (await asyncio.wait_for(second.read(), 5)).status == Serving.SERVING


async def test_closing_tells_watchers_and_ends_their_streams(
    health: HealthService, checker: Any
) -> None:
    """A server that stops says NOT_SERVING, and watchers do not hold it up."""
    health.set("", serving=True)
    watch = checker.Watch(asked(""))
    assert (await watch.read()).status == Serving.SERVING
    health.close()
    assert (await asyncio.wait_for(watch.read(), 5)).status == Serving.NOT_SERVING
    assert await asyncio.wait_for(watch.read(), 5) == grpc.aio.EOF


async def test_a_close_while_a_status_is_written_is_told_too(health: HealthService) -> None:
    """The status that a closing server sends is never swallowed by the one under way."""

    class ClosesMidway:
        def __init__(self) -> None:
            self.told: list[int] = []

        async def write(self, answer: health_pb2.HealthCheckResponse) -> None:
            self.told.append(answer.status)
            health.close()

    health.set("", serving=True)
    context = ClosesMidway()
    await asyncio.wait_for(health.Watch(asked(""), context), 5)
    assert context.told == [Serving.SERVING, Serving.NOT_SERVING]


async def test_reflection_lists_the_services_and_describes_ours(
    channel: grpc.aio.Channel,
) -> None:
    """What grpcurl asks for: the names, and the file that holds our service."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="inference_unlimited.v1.Inference"
        ),
    ]
    listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    assert {
        "inference_unlimited.v1.Inference",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    } == {service.name for service in listed.list_services_response.service}
    assert described.file_descriptor_response.file_descriptor_proto


async def test_a_port_in_use_is_told_clearly(bench: Bench, port: int) -> None:
    """A second server on the port is refused, whoever holds it."""
    with pytest.raises(ListenError, match="the port is in use") as caught:
        create_server(bench.core, HealthService(), host="127.0.0.1", port=port)
    assert "--grpc-port" in str(caught.value)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ListenError):
        create_server(bench.core, HealthService(), host="127.0.0.1", port=other.getsockname()[1])


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
async def test_a_name_is_taken_when_one_of_its_addresses_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily, address: str
) -> None:
    """The server would listen on the other one, and half of the clients would ask somebody else."""
    resolve = socket.getaddrinfo

    def both(host: str, port: int, **kinds: Any) -> Any:
        literals = ["127.0.0.1", "::1"] if host == "localhost" else [host]
        return [found for one in literals for found in resolve(one, port, **kinds)]

    monkeypatch.setattr("server.rpc.server.socket.getaddrinfo", both)
    with socket.create_server((address, 0), family=family) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match="the port is in use"):
            create_server(bench.core, HealthService(), host="localhost", port=port)
    server, bound = create_server(bench.core, HealthService(), host="localhost", port=port)
    assert bound == port
    await server.stop(0)


async def test_an_unknown_host_is_told_clearly(bench: Bench) -> None:
    """A name that does not resolve, and an address that is not ours."""
    with pytest.raises(ListenError, match="the host is unknown"):
        create_server(bench.core, HealthService(), host="no-such-host.invalid", port=0)
    with pytest.raises(ListenError, match=r"[Cc]annot assign"):
        create_server(bench.core, HealthService(), host="192.0.2.1", port=0)
