"""The one translation of the server's errors into HTTP's statuses and OpenAI's error objects."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

from server.errors import InvalidRequestError, OverloadedError, RequestError, Status
from server.request_context import current

CODES: dict[Status, int] = {
    Status.CANCELLED: 499,
    Status.INVALID_ARGUMENT: 400,
    Status.DEADLINE_EXCEEDED: 504,
    Status.NOT_FOUND: 404,
    Status.ALREADY_EXISTS: 409,
    Status.PERMISSION_DENIED: 403,
    Status.UNAUTHENTICATED: 401,
    Status.FAILED_PRECONDITION: 409,
    Status.RESOURCE_EXHAUSTED: 429,
    Status.INTERNAL: 500,
    Status.UNAVAILABLE: 503,
}
"""HTTP's status of each of the server's."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}


def refusal(error: RequestError) -> JSONResponse:
    """The whole answer to a request that is not answered otherwise."""
    headers = {}
    if error.status is Status.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = 'Bearer realm="inference-unlimited"'
    if isinstance(error, OverloadedError):
        # Whole seconds are all that the header knows.
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["Retry-After-Ms"] = str(round(error.retry_after_s * 1000))
    return JSONResponse(error_body(error), status_code=CODES[error.status], headers=headers)


def head_too_large(most: int) -> JSONResponse:
    """The answer to a request whose head is larger than one may be; no other status is HTTP's."""
    message = f"headers: are more than {most} bytes; send less"
    error = {"message": message, "type": "invalid_request_error", "param": "headers", "code": None}
    return JSONResponse({"error": error}, status_code=431, headers={"Connection": "close"})


def error_body(error: RequestError) -> dict[str, Any]:
    """OpenAI's object for an error, and the id of the request that it is of."""
    code = CODES[error.status]
    return {
        "error": {
            "message": str(error),
            "type": _TYPES.get(code, "server_error"),
            "param": error.field if isinstance(error, InvalidRequestError) else None,
            "code": error.code,
            "request_id": current().request_id or None,
        }
    }
