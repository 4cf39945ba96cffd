"""A small client of the gRPC API, for the commands that talk to a running server.

Owns the connection and what its failures are called. Imports nothing of the serving side, so that
a command answers at once.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as health
from grpc_health.v1 import health_pb2_grpc as health_grpc

from protos import admin_pb2 as admin
from protos import admin_pb2_grpc as admin_grpc
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from server.errors import ServerError

DEFAULT_TARGET = "localhost:50051"
CONNECT_TIMEOUT_S = 5.0
_COMPARE_TIMEOUT_S = 60.0  # resampling takes some seconds on a busy machine
_OPTIONS = (("grpc.max_receive_message_length", 64 << 20),)
_REMEDY = "Start one with `inference-unlimited serve`, or name another with --target."

_States = grpc.ChannelConnectivity

Metadata = tuple[tuple[str, str], ...]


class UnreachableError(ServerError):
    """No server answers at the target."""

    code = "unreachable"


class RefusedError(ServerError):
    """The server answered with an error; ``status`` is the gRPC status code in lower case."""

    code = "refused"

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """The methods that commands use. Make one with ``connect``."""

    def __init__(self, channel: grpc.Channel, metadata: Metadata = ()) -> None:
        self._stub: Any = pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        self._admin: Any = admin_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
        self._health: Any = health_grpc.HealthStub(channel)
        self._metadata = metadata

    def generate(
        self, request: pb.GenerateRequest, *, timeout_s: float | None = None
    ) -> Iterator[pb.GenerateResponse]:
        """Stream a completion; leaving the iterator ends the request on the server.

        Raises:
            RefusedError: The server says no.
        """
        with _refusals():
            call = self._stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
            try:
                yield from call
            finally:
                call.cancel()

    def variants(self) -> list[pb.Variant]:
        """All variants of the server.

        Raises:
            RefusedError: The server says no.
        """
        with _refusals():
            response: pb.ListVariantsResponse = self._stub.ListVariants(
                pb.ListVariantsRequest(), timeout=CONNECT_TIMEOUT_S, metadata=self._metadata
            )
        return list(response.variants)

    def serves(self, variant: str = "") -> bool:
        """Whether a variant, or the server (``""``), serves, by ``grpc.health.v1``.

        Raises:
            RefusedError: The server says no, or has no such variant.
        """
        request = health.HealthCheckRequest(service=variant)
        with _refusals():
            found = self._health.Check(request, timeout=CONNECT_TIMEOUT_S, metadata=self._metadata)
        return bool(found.status == health.HealthCheckResponse.SERVING)

    def load(self, request: admin.LoadVariantRequest) -> Iterator[pb.Variant]:
        """Load a variant; its state as it changes. Leaving the iterator does not stop the load.

        Raises:
            RefusedError: The server says no.
        """
        with _refusals():
            yield from self._admin.LoadVariant(request, metadata=self._metadata)

    def unload(self, variant: str) -> None:
        """Unload a variant; waits until its requests have ended.

        Raises:
            RefusedError: The server says no.
        """
        request = admin.UnloadVariantRequest(variant=variant)
        with _refusals():
            self._admin.UnloadVariant(request, metadata=self._metadata)

    def set_traffic(self, request: admin.SetTrafficRequest) -> admin.Traffic:
        """Direct routed traffic; gives what it is now.

        Raises:
            RefusedError: The server says no.
        """
        return self._traffic(self._admin.SetTraffic, request)

    def promote(self, variant: str) -> admin.Traffic:
        """Give one variant all routed traffic; gives what traffic is now.

        Raises:
            RefusedError: The server says no.
        """
        return self._traffic(self._admin.Promote, admin.PromoteRequest(variant=variant))

    def roll_back(self) -> admin.Traffic:
        """Take the latest change of traffic back; gives what traffic is now.

        Raises:
            RefusedError: The server says no.
        """
        return self._traffic(self._admin.Rollback, admin.RollbackRequest())

    def traffic(self) -> admin.Traffic:
        """What traffic is.

        Raises:
            RefusedError: The server says no.
        """
        return self._traffic(self._admin.GetTraffic, admin.GetTrafficRequest())

    def compare(self, baseline: str, candidate: str) -> admin.CompareResponse:
        """Two variants on the server's own traffic.

        Raises:
            RefusedError: The server says no.
        """
        request = admin.CompareRequest(baseline=baseline, candidate=candidate)
        with _refusals():
            found: admin.CompareResponse = self._admin.Compare(
                request, timeout=_COMPARE_TIMEOUT_S, metadata=self._metadata
            )
        return found

    def _traffic(self, method: Any, request: Any) -> admin.Traffic:
        with _refusals():
            found: admin.Traffic = method(
                request, timeout=CONNECT_TIMEOUT_S, metadata=self._metadata
            )
        return found


@contextmanager
def connect(
    target: str,
    *,
    timeout_s: float = CONNECT_TIMEOUT_S,
    ca: Path | None = None,
    metadata: Metadata = (),
) -> Iterator[Client]:
    """A client of the server at ``host:port``.

    Args:
        target: Where it listens.
        timeout_s: How long it is waited for.
        ca: PEM file with who signed its certificate; None for plaintext.
        metadata: Sent with every call.

    Raises:
        UnreachableError: Nothing answers there, or not in time.
    """
    channel = (
        grpc.insecure_channel(target, options=_OPTIONS)
        if ca is None
        else grpc.secure_channel(target, _credentials(ca), options=_OPTIONS)
    )
    with channel:
        _wait_ready(channel, target, timeout_s)
        yield Client(channel, metadata)


@asynccontextmanager
async def open_channels(
    target: str, count: int, ca: Path | None = None, *, timeout_s: float = CONNECT_TIMEOUT_S
) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Connected channels for many calls at a time, each with a connection of its own.

    Args:
        target: Where the server listens.
        count: How many; a server takes only so many streams of one connection.
        ca: PEM file with who signed its certificate; None for plaintext.
        timeout_s: How long it is waited for.

    Raises:
        UnreachableError: Nothing answers there, or not in time.
    """
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(_aio_channel(target, number, ca))
            for number in range(count)
        ]
        try:
            async with asyncio.timeout(timeout_s):
                for channel in channels:
                    await _connected(channel, target)
        except TimeoutError:
            raise UnreachableError(
                f"no server answered at {target} within {timeout_s:g} s.", remedy=_REMEDY
            ) from None
        yield channels


def _aio_channel(target: str, number: int, ca: Path | None) -> grpc.aio.Channel:
    # Channels with the same options would share one connection.
    options = (*_OPTIONS, ("inference_unlimited.connection", number))
    if ca is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, _credentials(ca), options=options)


async def _connected(channel: grpc.aio.Channel, target: str) -> None:
    """Return when the channel is connected, raise as soon as the first attempt has failed."""
    while (state := channel.get_state(try_to_connect=True)) is not _States.READY:
        if state in (_States.TRANSIENT_FAILURE, _States.SHUTDOWN):
            raise UnreachableError(f"no server answers at {target}.", remedy=_REMEDY)
        await channel.wait_for_state_change(state)


def _credentials(ca: Path) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(ca.read_bytes())


def _wait_ready(channel: grpc.Channel, target: str, timeout_s: float) -> None:
    """Return when the channel is connected, raise as soon as the first attempt has failed."""
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    channel.subscribe(states.put, try_to_connect=True)
    try:
        while True:
            state = states.get(timeout=timeout_s)
            if state is _States.READY:
                return
            if state in (_States.TRANSIENT_FAILURE, _States.SHUTDOWN):
                raise UnreachableError(f"no server answers at {target}.", remedy=_REMEDY)
    except queue.Empty:
        raise UnreachableError(
            f"no server answered at {target} within {timeout_s:g} s.", remedy=_REMEDY
        ) from None
    finally:
        channel.unsubscribe(states.put)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        code, details = error.code(), error.details()
        raise RefusedError(code.name.lower(), details or "no details") from None
