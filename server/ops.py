"""What operators may ask over HTTP, apart from the API: metrics and health.

Owns the routes. ``/livez``: process and engine answer. ``/healthz``: routed traffic is answered.
``/readyz``: every configured variant was once ready or failed. Knows nothing of how these come
about.
"""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.catalog import VariantView


class Health(Protocol):
    """How the server is."""

    def alive(self) -> bool:
        """Whether the engine works."""
        ...

    def serving(self) -> bool:
        """Whether routed traffic is answered."""
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
        return _answer(health.serving(), "serving", "no variant that takes routed traffic serves")

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


def _answer(good: bool, yes: str, no: str) -> Response:  # noqa: FBT001 - the answer itself
    return JSONResponse({"status": yes if good else no}, status_code=200 if good else 503)
