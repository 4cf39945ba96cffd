"""``grpc.health.v1``: whether the server (``""``) and each variant serve, as the app says.

Written here, since the package's own asyncio servicer begins as SERVING and forgets its other
watchers when one of them leaves. Knows nothing of how health is judged.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Statuses by name; lives on the event loop. NOT_SERVING until told otherwise."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {"": False}
        self._changed = asyncio.Event()
        self._closed = False

    def set(self, name: str, *, serving: bool) -> None:
        """Say whether a variant serves; ``""`` is the server."""
        if self._serving.get(name) is not serving:
            self._serving[name] = serving
            # Everyone who waits holds the old event; the next change gets a new one.
            self._changed.set()
            self._changed = asyncio.Event()

    def is_serving(self, name: str) -> bool:
        """Whether a variant, or the server, was last said to serve."""
        return self._serving.get(name, False)

    def close(self) -> None:
        """Nothing serves any more; watchers hear it and their streams end."""
        self._closed = True
        for name in self._serving:
            self.set(name, serving=False)
        self._changed.set()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """The status now; NOT_FOUND for a name that nobody set."""
        status = self._status(request.service)
        if status == _SERVICE_UNKNOWN:
            known = ", ".join(repr(name) for name in self._serving)
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"service: is unknown; use one of: {known}."
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        """The status now and whenever it changes."""
        sent: int | None = None
        while True:
            # Read together: what changes while the status is written is told in the next turn.
            changed, closed = self._changed, self._closed
            status = self._status(request.service)
            if status != sent:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                sent = status
            if closed:
                return
            await changed.wait()

    def _status(self, name: str) -> int:
        serving = self._serving.get(name)
        if serving is None:
            return int(_SERVICE_UNKNOWN)
        return int(_SERVING if serving else _NOT_SERVING)
