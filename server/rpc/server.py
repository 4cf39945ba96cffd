"""The gRPC server: services, bounds of the transport, and the address.

Knows nothing of requests; of health only whom to ask.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from protos import admin_pb2
from protos import admin_pb2_grpc as admin_grpc
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from server.access import Access
from server.certificates import Certificates
from server.core import Core
from server.errors import ListenError
from server.rpc import health
from server.rpc.admin import AdminService
from server.rpc.bound import Bound
from server.rpc.decoding import StrictHandlers
from server.rpc.guard import Guard
from server.rpc.open_inference import OpenInferenceService
from server.rpc.request_ids import RequestIds
from server.rpc.service import InferenceService

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Inference"].full_name
ADMIN_SERVICE_NAME = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
OPEN_SERVICE_NAME = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_MIB = 1 << 20
_UNCOUNTED_CALLS = 1024

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", 64 * _MIB),
    # A peer that vanished without a word is noticed within 30 s, and its slots come free.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may ping every 10 s, also while they wait for the first token.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # A peer that connects and does not speak is let go.
    ("grpc.server_handshake_timeout_ms", 20_000),
    # Two servers on one port would share its requests without a word.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """What connections and their streams may take; admission bounds the requests behind them.

    Attributes:
        max_streams: Of one connection.
        max_calls: Of all connections together, health's apart.
        max_connections: A further one is closed at once.
        max_metadata_bytes: Of one call.
        handshake_s: Seconds for TLS and the first words of HTTP/2.
        idle_s: Seconds without a call after which a connection is closed; its client opens another
            one when it needs it.
    """

    max_streams: int = 1024
    max_calls: int = 4096
    max_connections: int = 1024
    max_metadata_bytes: int = 16 << 10
    handshake_s: float = 10.0
    idle_s: int = 600

    def options(self) -> tuple[tuple[str, int], ...]:
        """In gRPC's words."""
        return (
            ("grpc.max_concurrent_streams", self.max_streams),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            # Above the first one gRPC may refuse metadata, above the second it must.
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.max_metadata_bytes),
            ("grpc.server_handshake_timeout_ms", round(self.handshake_s * 1000)),
            ("grpc.max_connection_idle_ms", self.idle_s * 1000),
        )


def create_server(
    core: Core,
    health_service: health.HealthService,
    *,
    host: str,
    port: int,
    access: Access | None = None,
    certificates: Certificates | None = None,
    admin: AdminService | None = None,
    limits: TransportLimits | None = None,
    tracing: grpc.aio.ServerInterceptor | None = None,
) -> tuple[grpc.aio.Server, int]:
    """Make a server that listens on ``host:port`` but is not started.

    Args:
        core: Answers.
        health_service: Says who serves.
        host: Name or address.
        port: 0 takes any that is free.
        access: Who may ask; None for everybody.
        certificates: Encrypt; None for plaintext.
        admin: What may be changed while it runs; None for nothing.
        limits: Of the transport.
        tracing: Makes spans of calls; None for no tracing.

    Returns:
        The server, and the port that it got (``port`` 0 takes any that is free).

    Raises:
        ListenError: The address cannot be listened on.
    """
    largest = ("grpc.max_receive_message_length", core.limits.largest_message_bytes)
    limits = limits or TransportLimits()
    guard = Guard(access) if access is not None and not access.is_open else None
    # The first is the outermost: what is refused has an id and a span, too; and whoever may not ask
    # is told so before it counts.
    around = (RequestIds(), tracing, guard, Bound(limits.max_calls))
    server = grpc.aio.server(
        options=(*_OPTIONS, *limits.options(), largest),
        interceptors=[one for one in around if one is not None],
        # gRPC's own bound does not say when to come back: it is for what ours does not count.
        maximum_concurrent_rpcs=limits.max_calls + _UNCOUNTED_CALLS,
    )
    strict = StrictHandlers(server)
    pb_grpc.add_InferenceServicer_to_server(  # type: ignore[no-untyped-call]
        InferenceService(core), strict
    )
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
        OpenInferenceService(
            core,
            health_service.is_serving,
            None if admin is None else admin.operations,
        ),
        strict,
    )
    health_pb2_grpc.add_HealthServicer_to_server(health_service, strict)
    names = [SERVICE_NAME, OPEN_SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME]
    if admin is not None:
        admin_grpc.add_AdminServicer_to_server(admin, strict)  # type: ignore[no-untyped-call]
        names.append(ADMIN_SERVICE_NAME)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
        reflection.aio.ReflectionServicer(names), strict
    )
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # gRPC is content with one of a name's addresses; the others would lead to somebody else.
    obstacle = _obstacle(host, port)
    if obstacle is None:
        try:
            if certificates is not None:
                return server, server.add_secure_port(address, certificates.for_grpc())
            return server, server.add_insecure_port(address)
        except RuntimeError:  # it says no more than that it failed
            obstacle = "gRPC gives no reason"
    raise ListenError(
        f"gRPC cannot listen on {address}: {obstacle}.",
        remedy="Choose another address with --host and --grpc-port.",
    )


def _obstacle(host: str, port: int) -> str | None:
    """The system's word for why an address cannot be listened on; gRPC does not tell it.

    A name is free where none of its addresses is taken and at least one can be had.
    """
    reasons: list[str] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        return f"the host is unknown ({error.strerror})"
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # As gRPC does: connections of a server that has just ended are no obstacle.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "the port is in use"
            reasons.append(os.strerror(error.errno or errno.EINVAL))
    return reasons[0] if len(reasons) == len(found) else None
