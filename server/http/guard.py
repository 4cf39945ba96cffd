"""The guard before the HTTP API: which right each path needs, and the refusal without it.

Knows nothing of what paths do.
"""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.access import Access, Right
from server.errors import RequestError
from server.http.errors import refusal

_READ = "/v1/models"
_DOCUMENT = "/openapi.json"


class Guard:
    """An ASGI application that lets those through whose token allows the path."""

    def __init__(self, application: ASGIApp, access: Access) -> None:
        self._application = application
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response: JSONResponse | None = None
        if scope["type"] == "http":
            path = scope["path"]
            reads = path in (_READ, _DOCUMENT) or path.startswith(_READ + "/")
            try:
                self._access.client(_authorization(scope), Right.READ if reads else Right.GENERATE)
            except RequestError as error:
                response = refusal(error)
        await (response or self._application)(scope, receive, send)


def _authorization(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return bytes(value).decode("latin-1")
    return None
