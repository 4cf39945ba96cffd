"""The listener for operators: metrics and health over HTTP, apart from the API.

Owns the routes and a uvicorn server in the caller's event loop, without signal handlers of its
own. ``/livez``: process and engine answer. ``/healthz``: the default variant serves. ``/readyz``:
every configured variant was once ready or failed. Knows nothing of how these come about.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Protocol

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.catalog import VariantView
from server.errors import ListenError

_GRACE_S = 2  # for scrapes that are still being answered at the end
_BACKLOG = 128


class Health(Protocol):
    """How the server is."""

    def alive(self) -> bool:
        """Whether the engine works."""
        ...

    def serving(self) -> bool:
        """Whether the default variant takes requests."""
        ...

    def draining(self) -> bool:
        """Whether the server is on its way out."""
        ...

    def settled(self) -> bool:
        """Whether every variant was once ready or failed."""
        ...

    def views(self) -> tuple[VariantView, ...]:
        """All variants."""
        ...


def routes(registry: CollectorRegistry, health: Health) -> Starlette:
    """The application behind the listener."""

    # Not async: rendering a thousand series must not hold up the streams on the event loop.
    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    async def livez(_: Request) -> Response:
        return _answer(health.alive(), "alive", "the engine does not answer")

    async def healthz(_: Request) -> Response:
        return _answer(health.serving(), "serving", "the default variant does not serve")

    async def readyz(_: Request) -> Response:
        is_ready = health.settled() and not health.draining()
        states = [
            {"name": view.name, "state": view.state.value, "error": view.error}
            for view in health.views()
        ]
        status = "draining" if health.draining() else "ready" if is_ready else "starting"
        return JSONResponse(
            {"status": status, "variants": states}, status_code=200 if is_ready else 503
        )

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/livez", livez),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )


class OpsListener:
    """Serves the routes until stopped."""

    def __init__(self, application: Starlette, host: str, port: int) -> None:
        self._socket = listen(host, port, "server.ops_port")
        self.port: int = self._socket.getsockname()[1]
        self._server = _QuietServer(
            uvicorn.Config(
                application,
                http="h11",
                loop="none",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
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


def _answer(good: bool, yes: str, no: str) -> Response:  # noqa: FBT001 - the answer itself
    return JSONResponse({"status": yes if good else no}, status_code=200 if good else 503)
