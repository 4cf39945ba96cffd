"""An id for every HTTP request: the caller's or a new one, told in the answer's header.

Knows nothing of what paths do.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.request_context import REQUEST_ID, begin


class RequestIds:
    """An ASGI application around all others, so that refusals have an id, too."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        request_id = begin(Headers(scope=scope).get(REQUEST_ID)).request_id

        async def identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        await self._application(scope, receive, identified)
