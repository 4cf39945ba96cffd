"""An HTTP listener in the caller's event loop, without signal handlers of its own.

Owns the socket and a uvicorn server. Knows nothing of what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from server.errors import ListenError
from server.http_protocol import Protocol

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
    ) -> None:
        self._socket = listen(host, port, field)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application,
            http=Protocol,
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
        config.load()
        config.ssl = context  # made here, since it takes another certificate while it runs
        self._server = _QuietServer(config)
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
    """Leaves signals to the application."""

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
