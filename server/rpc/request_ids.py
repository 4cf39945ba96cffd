"""An id for every call: the caller's or a new one, told in the trailing metadata.

Knows nothing of what methods do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from server.request_context import REQUEST_ID, begin
from server.rpc.handlers import behaviour_of, text_of, with_behaviour


class RequestIds(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Stands before all other interceptors, so that refusals have an id, too."""

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """The method's handler, which begins with the id."""
        handler = await continuation(handler_call_details)
        behaviour = None if handler is None else behaviour_of(handler)
        if behaviour is None:
            return handler
        offered = text_of(handler_call_details.invocation_metadata, REQUEST_ID)

        async def identified(request: Any, context: Any) -> Any:
            context.set_trailing_metadata(((REQUEST_ID, begin(offered).request_id),))
            return await behaviour(request, context)

        return with_behaviour(handler, identified)
