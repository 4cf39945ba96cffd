"""The one translation of the server's errors into gRPC statuses, used by every method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc

from server.core import Core
from server.errors import OverloadedError, RequestError, Status
from server.rpc.handlers import with_behaviour

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


async def send(context: Any, message: Any) -> None:
    """Write a message into a stream.

    Raises:
        asyncio.CancelledError: Its caller left while it waited to be read, which gRPC tells as a
            failure of its own before it cancels the call.
    """
    try:
        await context.write(message)
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


def refusing(handler: Any, error: RequestError) -> Any:
    """A handler of the same kind that ends every call with the error."""

    async def refuse(_: Any, context: Any) -> None:
        await _abort(context, error)

    return with_behaviour(handler, refuse)


async def _abort(context: Any, error: RequestError) -> NoReturn:
    metadata: tuple[tuple[str, str], ...] = tuple(context.trailing_metadata() or ())
    if isinstance(error, OverloadedError):
        metadata = (*metadata, (PUSHBACK, str(round(error.retry_after_s * 1000))))
    details = str(error).encode()[:_LONGEST_DETAILS_BYTES].decode(errors="ignore")
    try:
        await context.abort(CODES[error.status], details, metadata)
    except grpc.aio.InternalError:  # nobody is there any more to be told
        raise asyncio.CancelledError from None
    raise error  # abort has raised; this only says so to the type checker
