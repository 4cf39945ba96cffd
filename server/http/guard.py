"""The guard before the HTTP API: who may ask for what, how much at a time, and how large a head.

Knows nothing of what paths do.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.access import Access, Right, peer_client
from server.errors import OverloadedError, RequestError
from server.http.errors import head_too_large, refusal

_READ = "/v1/models"
_DOCUMENT = "/openapi.json"
_CLIENT = "client"  # in the request's state
_RETRY_S = 1.0


class Guard:
    """An ASGI application that lets those through whose token allows the path.

    Args:
        application: What is guarded.
        access: Who may ask.
        max_calls: Requests that are answered at a time.
        max_header_bytes: Names and values of a request's headers and its target together.
    """

    def __init__(
        self, application: ASGIApp, access: Access, *, max_calls: int, max_header_bytes: int
    ) -> None:
        self._application = application
        self._access = access
        self._max_calls = max_calls
        self._max_header_bytes = max_header_bytes
        self._calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        response = self._refusal(scope)
        if response is not None:
            await response(scope, receive, send)
            return
        self._calls += 1
        try:
            await self._application(scope, receive, send)
        finally:
            self._calls -= 1

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """What to answer instead; None lets it through and notes whose it is."""
        if _head_bytes(scope) > self._max_header_bytes:
            return head_too_large(self._max_header_bytes)
        path = scope["path"]
        reads = path in (_READ, _DOCUMENT) or path.startswith(_READ + "/")
        try:
            right = Right.READ if reads else Right.GENERATE
            client = self._access.client(_authorization(scope), right)
            if self._calls >= self._max_calls:
                raise OverloadedError(
                    f"the server answers {self._calls} HTTP requests, as many as it takes; try "
                    "again later.",
                    retry_after_s=_RETRY_S,
                )
        except RequestError as error:
            return refusal(error)
        scope.setdefault("state", {})[_CLIENT] = client or peer_client(_address(scope))
        return None


def client_of(scope: Any) -> str:
    """Whose request it is, for fairness between clients."""
    return str(scope.get("state", {}).get(_CLIENT, ""))


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return "" if client is None else str(client[0])


def _head_bytes(scope: Scope) -> int:
    target = len(scope["raw_path"]) + len(scope["query_string"])
    return target + sum(len(name) + len(value) for name, value in scope["headers"])


def _authorization(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return bytes(value).decode("latin-1")
    return None
