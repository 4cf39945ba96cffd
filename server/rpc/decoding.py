"""Requests that are no protobuf are the caller's error, and are answered as such.

gRPC itself answers them UNKNOWN, with a traceback in the log. Owns the deserializers of all
methods and the refusal. Knows nothing of what methods do.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from server.errors import InvalidRequestError

_ERROR = ("request", "is no valid message of this method", "encode it by the API's .proto")


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands where a request would."""


class StrictHandlers:
    """Takes services' handlers in the server's place, and gives them to it made strict."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Nothing: the stubs register every service twice, and the other one has the names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register a service."""
        strict = {name: _strict(handler) for name, handler in handlers.items()}
        generic = grpc.method_handlers_generic_handler(service, strict)
        self._server.add_generic_rpc_handlers((generic,))


def _strict(handler: Any) -> Any:
    """The handler, which refuses what cannot be read."""
    kinds: Mapping[tuple[bool, bool], tuple[Any, str]] = {
        (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
        (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
        (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
        (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
    }
    make, name = kinds[handler.request_streaming, handler.response_streaming]
    method = getattr(handler, name)
    if inspect.isasyncgenfunction(method):
        checked: Callable[..., Any] = _checked_generator(method)
    else:
        checked = _checked_stream(method) if handler.request_streaming else _checked(method)
    return make(
        checked,
        request_deserializer=_reader(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )


def _reader(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except DecodeError:
            return _Malformed()

    return read


def _checked(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    async def checked(request: Any, context: Any) -> Any:
        if isinstance(request, _Malformed):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(InvalidRequestError(*_ERROR)))
        return await method(request, context)

    return checked


def _checked_stream(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    async def checked(requests: AsyncIterator[Any], context: Any) -> Any:
        # Its method answers for all errors of requests.
        return await method(_only_read(requests), context)

    return checked


def _checked_generator(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    async def checked(requests: AsyncIterator[Any], context: Any) -> Any:
        try:
            async for response in method(_only_read(requests), context):
                yield response
        except InvalidRequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    return checked


async def _only_read(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, _Malformed):
            raise InvalidRequestError(*_ERROR)
        yield request
