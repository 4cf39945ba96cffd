"""An HTTP listener in the caller's event loop, without signal handlers of its own.

Owns the socket and a uvicorn server. Knows nothing of what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from server.errors import ListenError
from server.http.connection import Connection, ConnectionLimits

_GRACE_S = 2  # for what is still being answered at the end
_BACKLOG = 128


class HttpListener:
    """Serves an application until stopped."""

    def __init__(
        self,
        application: ASGIApp,
        host: str,
        port: int,
        *,
        field: str,
        context: ssl.SSLContext | None = None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        limits = limits or ConnectionLimits()
        self._socket = listen(host, port, field)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application,
            http="h11",
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_GRACE_S,
            timeout_keep_alive=limits.idle_s,
            h11_max_incomplete_event_size=limits.header_bytes,
            # Whoever connects is who asks: what a header says of that is anybody's.
            proxy_headers=False,
            server_header=False,
        )
        config.load()
        self._server = _QuietServer(config, limits, context)
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Answer from now on."""
        self._running = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def stop(self) -> None:
        """Answer what was asked, and close."""
        self._server.should_exit = True
        if self._running is not None:
            await self._running
        self._socket.close()


class _QuietServer(uvicorn.Server):
    """Leaves signals to the application, and bounds connections.

    Args:
        config: What uvicorn wants to know.
        limits: Of connections.
        context: Encrypts; it may take another certificate while it runs.
    """

    def __init__(
        self, config: uvicorn.Config, limits: ConnectionLimits, context: ssl.SSLContext | None
    ) -> None:
        super().__init__(config)
        self._limits = limits
        self._tls: dict[str, Any] = {}
        if context is not None:
            self._tls = {"ssl": context, "ssl_handshake_timeout": limits.header_s}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        make = functools.partial(
            Connection,
            limits=self._limits,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=loop,
        )
        self.servers = [
            await loop.create_server(make, sock=one, backlog=_BACKLOG, **self._tls)
            for one in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int, field: str) -> socket.socket:
    """Open a listening socket.

    Args:
        host: Name or address.
        port: 0 for a free one.
        field: The config field that is named when it fails.

    Raises:
        ListenError: The address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ListenError(
            f"{field}: cannot listen on {host}:{port}: {error.strerror or error}.",
            remedy="Is another server running? Choose another port, or 0 for a free one.",
        ) from error
