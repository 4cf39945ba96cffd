"""The one translation of the server's errors into gRPC statuses, used by every method."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc

from server.core import Core
from server.errors import OverloadedError, RequestError, Status

CODES: dict[Status, grpc.StatusCode] = {
    Status.CANCELLED: grpc.StatusCode.CANCELLED,
    Status.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Status.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Status.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Status.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Status.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Status.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Status.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Status.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Status.INTERNAL: grpc.StatusCode.INTERNAL,
    Status.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}

# The key that gRPC's retry design (A6) reads to learn when to come back.
PUSHBACK = "grpc-retry-pushback-ms"

# Details travel as a header, and clients refuse headers beyond 8 KiB (each byte may take three).
_LONGEST_DETAILS_BYTES = 2000


@asynccontextmanager
async def answering(core: Core, context: Any, method: str) -> AsyncIterator[None]:
    """Run a method's body; whatever it raises becomes a status of the table."""
    try:
        yield
    except RequestError as error:
        await _abort(context, error)
    except Exception as error:  # noqa: BLE001 - the border: nothing may leave with its detail
        await _abort(context, core.internal(error, method=method))


def refusing(handler: Any, error: RequestError) -> Any:
    """A handler of the same kind that ends every call with the error."""

    async def refuse(_: Any, context: Any) -> None:
        await _abort(context, error)

    async def refuse_with_stream(_: Any, context: Any) -> Any:
        await _abort(context, error)
        yield  # a generator, which never gets here

    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[handler.request_streaming, handler.response_streaming]
    return make(
        refuse_with_stream if handler.response_streaming else refuse,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


async def _abort(context: Any, error: RequestError) -> NoReturn:
    metadata: tuple[tuple[str, str], ...] = ()
    if isinstance(error, OverloadedError):
        metadata = ((PUSHBACK, str(round(error.retry_after_s * 1000))),)
    details = str(error).encode()[:_LONGEST_DETAILS_BYTES].decode(errors="ignore")
    await context.abort(CODES[error.status], details, metadata)
    raise error  # abort has raised; this only says so to the type checker
