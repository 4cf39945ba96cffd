"""How many gRPC calls are answered at a time, over all connections.

A further one is refused at once and told when to come back. Health is not counted, so that probes
are answered under load. Owns the count; knows nothing of what methods do.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from server.errors import OverloadedError
from server.rpc.status import refusing

_HEALTH = "/grpc.health.v1.Health/"
_RETRY_S = 1.0


class Bound(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets so many calls through at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._calls = 0

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """The method's handler, counted, or one that refuses; None where there is no method."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_HEALTH):
            return handler
        if self._calls >= self._most:
            error = OverloadedError(
                f"the server answers {self._calls} calls, as many as it takes; try again later.",
                retry_after_s=_RETRY_S,
            )
            return refusing(handler, error)
        kind = _kind(handler)
        return handler._replace(**{kind: self._counted(getattr(handler, kind))})

    def _counted(self, answer: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def whole(request: Any, context: Any) -> Any:
            with self._one():
                return await answer(request, context)

        async def parts(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._one():
                async for part in answer(request, context):
                    yield part

        return parts if inspect.isasyncgenfunction(answer) else whole

    @contextmanager
    def _one(self) -> Iterator[None]:
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1


def _kind(handler: Any) -> str:
    asks = "stream" if handler.request_streaming else "unary"
    return f"{asks}_{'stream' if handler.response_streaming else 'unary'}"
