"""What stands before a method: a handler's behaviour taken out, and another put in its place.

Every method here is a coroutine that takes a request (or an iterator of requests) and a context;
those that stream write to the context. Knows nothing of what interceptors do with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

Behaviour = Callable[[Any, Any], Awaitable[Any]]

_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def behaviour_of(handler: Any) -> Behaviour | None:
    """The coroutine behind a handler; None where it is something else (reflection, health)."""
    kinds = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    behaviour: Behaviour = next(kind for kind in kinds if kind is not None)
    return behaviour if inspect.iscoroutinefunction(behaviour) else None


def with_behaviour(handler: Any, behaviour: Behaviour) -> Any:
    """A handler of the same kind, with the same messages."""
    make = _MAKERS[handler.request_streaming, handler.response_streaming]
    return make(
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def text_of(metadata: Any, name: str) -> str | None:
    """The metadata of a name; the first of several."""
    for key, value in metadata or ():
        if key == name:
            return str(value) if isinstance(value, str) else None
    return None
