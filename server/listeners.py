"""Where the server listens: gRPC and HTTP for its callers, and a third place for its operators.

Owns the listeners, who may ask them, and their certificate. The operators' one is plaintext and
asks for no token: probes and scrapers have none. Knows nothing of what is answered.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from server.certificates import CertificateFiles, Certificates
from server.config.access import access_of, check_exposure
from server.config.fields import ServerSection, TlsSection
from server.core import Core
from server.http.application import OpenAI
from server.http.connection import ConnectionLimits
from server.http.guard import Guard
from server.http.request_ids import RequestIds
from server.listener import HttpListener
from server.rpc.admin import AdminService
from server.rpc.health import HealthService
from server.rpc.server import TransportLimits, create_server

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from server.tracing.tracing import Tracing

_LAST_WORDS_S = 2.0  # for telling the callers of streams that are cut


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the server listens, ports resolved; ``http_port`` is None where it does not."""

    host: str
    grpc_port: int
    http_port: int | None
    ops_host: str
    ops_port: int


class Listeners:
    """All of them, open but not answering until ``start``.

    Raises:
        ListenError: An address or a certificate cannot be had, or nobody is asked for a token.
        SecretError: A token's secret cannot be had.
    """

    def __init__(
        self,
        core: Core,
        health: HealthService,
        operators: Starlette,
        admin: AdminService,
        server: ServerSection,
        *,
        tracing: Tracing | None = None,
    ) -> None:
        check_exposure(server)
        access = access_of(server)
        transport = server.transport
        limits = ConnectionLimits(
            most=transport.max_connections,
            header_bytes=transport.max_metadata_bytes,
            header_s=transport.head_seconds,
            body_s=transport.body_seconds,
            idle_s=transport.idle_seconds,
            unread_s=transport.unread_seconds,
        )
        certificates = None if server.tls is None else Certificates(_files(server.tls))
        self._rpc, grpc_port = create_server(
            core,
            health,
            host=server.host,
            port=server.grpc_port,
            access=access,
            certificates=certificates,
            admin=admin,
            limits=TransportLimits(
                max_streams=transport.max_streams,
                max_calls=transport.max_calls,
                max_connections=transport.max_connections,
                max_metadata_bytes=transport.max_metadata_bytes,
                handshake_s=transport.head_seconds,
                idle_s=transport.idle_seconds,
            ),
            tracing=None if tracing is None else tracing.methods,
        )
        self._http: HttpListener | None = None
        if server.http_port is not None:
            public: ASGIApp = Guard(
                OpenAI(core, started=time.time()).application(),
                access,
                max_calls=transport.max_calls,
                max_header_bytes=transport.max_metadata_bytes,
            )
            if tracing is not None:
                public = tracing.application(public)
            self._http = HttpListener(
                RequestIds(public),
                server.host,
                server.http_port,
                field="server.http_port",
                context=None if certificates is None else certificates.for_http(),
                limits=limits,
            )
        ops_host = server.ops_host or server.host
        self._ops = HttpListener(
            operators, ops_host, server.ops_port, field="server.ops_port", limits=limits
        )
        http_port = None if self._http is None else self._http.port
        self.addresses = Addresses(server.host, grpc_port, http_port, ops_host, self._ops.port)

    async def start(self) -> None:
        """Answer from now on."""
        await self._rpc.start()
        if self._http is not None:
            self._http.start()
        self._ops.start()

    async def hand_over(self, seconds: float) -> None:
        """Wait until the transport has sent what was answered; new calls are refused."""
        await self._rpc.stop(seconds)

    async def close_public(self) -> None:
        """Leave the callers; streams that are still open are cut."""
        await self._rpc.stop(_LAST_WORDS_S)
        if self._http is not None:
            await self._http.stop()

    async def close(self) -> None:
        """Leave the operators too."""
        if self._http is not None:
            await self._http.stop()
        await self._ops.stop()


def _files(tls: TlsSection) -> CertificateFiles:
    client_ca = None if tls.client_ca is None else Path(tls.client_ca)
    return CertificateFiles(Path(tls.certificate), Path(tls.key), client_ca)
