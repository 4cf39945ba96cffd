"""The guard before every gRPC method: which right each needs, and the refusal without it.

Owns the table of methods; one that is not in it needs the right ``admin``. Knows nothing of what
methods do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from server.access import Access, Right
from server.errors import RequestError
from server.rpc.caller import CLIENT
from server.rpc.handlers import text_of
from server.rpc.status import refusing

_OURS = "/inference_unlimited.v1.Inference/"
_ADMIN = "/inference_unlimited.v1.Admin/"
_OPEN = "/inference.GRPCInferenceService/"
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/"
_HEALTH = "/grpc.health.v1.Health/"

RIGHTS: Mapping[str, Right | None] = {
    _OURS + "Generate": Right.GENERATE,
    _OURS + "Complete": Right.GENERATE,
    _OURS + "Chat": Right.GENERATE,
    _OURS + "CompleteChat": Right.GENERATE,
    _OURS + "Tokenize": Right.GENERATE,
    _OURS + "Detokenize": Right.GENERATE,
    _OURS + "ListVariants": Right.READ,
    _OURS + "GetVariant": Right.READ,
    _OPEN + "ModelInfer": Right.GENERATE,
    _OPEN + "ModelStreamInfer": Right.GENERATE,
    _OPEN + "ServerLive": Right.READ,
    _OPEN + "ServerReady": Right.READ,
    _OPEN + "ModelReady": Right.READ,
    _OPEN + "ServerMetadata": Right.READ,
    _OPEN + "ModelMetadata": Right.READ,
    _OPEN + "RepositoryIndex": Right.READ,
    _OPEN + "RepositoryModelLoad": Right.ADMIN,
    _OPEN + "RepositoryModelUnload": Right.ADMIN,
    _ADMIN + "LoadVariant": Right.ADMIN,
    _ADMIN + "UnloadVariant": Right.ADMIN,
    _ADMIN + "SetTraffic": Right.ADMIN,
    _ADMIN + "GetTraffic": Right.READ,
    _ADMIN + "Promote": Right.ADMIN,
    _ADMIN + "Rollback": Right.ADMIN,
    _ADMIN + "Compare": Right.READ,
    _REFLECTION + "ServerReflectionInfo": Right.READ,
    # Probes carry no tokens.
    _HEALTH + "Check": None,
    _HEALTH + "Watch": None,
}
"""By full name; None: nobody is asked who it is."""


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets those through whose token allows the method."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """The method's handler, or one that refuses; None for a method that there is not."""
        handler = await continuation(handler_call_details)
        right = RIGHTS.get(handler_call_details.method, Right.ADMIN)
        if handler is None or right is None:
            return handler
        try:
            presented = authorization(handler_call_details.invocation_metadata)
            CLIENT.set(self._access.client(presented, right))
        except RequestError as error:
            return refusing(handler, error)
        return handler


def authorization(metadata: Any) -> str | None:
    """The metadata of this name; the first of several."""
    return text_of(metadata, "authorization")
