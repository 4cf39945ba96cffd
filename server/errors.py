"""Errors of the server: one base class, and one table of the ways a request can be refused.

Every method of every face (gRPC now, others later) answers with these and nothing else; a face
only translates ``Status`` into its own codes. Knows nothing of gRPC. The table for users is
docs/errors.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class Status(StrEnum):
    """How a request ended: the gRPC status codes that are used, in lower case."""

    OK = "ok"
    CANCELLED = "cancelled"
    INVALID_ARGUMENT = "invalid_argument"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    PERMISSION_DENIED = "permission_denied"
    UNAUTHENTICATED = "unauthenticated"
    FAILED_PRECONDITION = "failed_precondition"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"


class ServerError(Exception):
    """Something about the server that a user can act on.

    Attributes:
        code: Stable, lower-case identifier.
        remedy: What the user can do about it, one sentence; may be empty.
    """

    code = "server"

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        """The sentence and, when there is one, the remedy."""
        return f"{super().__str__()} {self.remedy}".strip()


class ListenError(ServerError):
    """An address could not be listened on (port in use, no such host, no permission)."""

    code = "listen"


class OptimizerError(ServerError):
    """The optimizer ended without what it was asked for."""

    code = "optimizer"

    def __init__(
        self, message: str, *, remedy: str = "", code: str = "optimizer", path: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code
        self.path = path

    def __str__(self) -> str:
        """The field at fault, when there is one, before the sentence and its remedy."""
        said = super().__str__()
        return f"{self.path}: {said}" if self.path else said


class OverBudgetError(ServerError):
    """An artifact may not serve, since it is over its variant's budget.

    Attributes:
        breaches: Where, a sentence each.
    """

    code = "over_budget"

    def __init__(self, breaches: Sequence[str]) -> None:
        super().__init__(
            f"It is over its budget: {' '.join(breaches)}",
            remedy="Choose a gentler chain, raise the limit, or set budget.on_breach to rollback "
            "or warn; the artifact stays in the store.",
        )
        self.breaches = tuple(breaches)


class RequestError(ServerError):
    """A request that is not answered; ``status`` is what the caller is told."""

    status = Status.INTERNAL

    @property
    def code(self) -> str:  # type: ignore[override]
        """The status, which is stable and lower-case."""
        return self.status.value


class InvalidRequestError(RequestError):
    """A field of the request is wrong: which one, why, and what to use instead."""

    status = Status.INVALID_ARGUMENT

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field


class NothingFollowsError(RequestError):
    """What the request excludes leaves no token that may come next; the sentence says more."""

    status = Status.INVALID_ARGUMENT


class UnknownVariantError(RequestError):
    """No variant has this name; the known ones are listed."""

    status = Status.NOT_FOUND


class UnauthenticatedError(RequestError):
    """No token that is known was presented."""

    status = Status.UNAUTHENTICATED


class ForbiddenError(RequestError):
    """The token that was presented does not allow this."""

    status = Status.PERMISSION_DENIED


class AlreadyExistsError(RequestError):
    """What was to be made is there."""

    status = Status.ALREADY_EXISTS


class PreconditionError(RequestError):
    """Not now: something else must be done first, and the sentence says what."""

    status = Status.FAILED_PRECONDITION


class OverloadedError(RequestError):
    """The variant's queue is full; ``retry_after_s`` is a guess at when a place is free."""

    status = Status.RESOURCE_EXHAUSTED

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(RequestError):
    """The server is draining, or the variant does not serve (yet)."""

    status = Status.UNAVAILABLE


class DeadlineExceededError(RequestError):
    """The caller's deadline passed."""

    status = Status.DEADLINE_EXCEEDED


class CancelledByEngineError(RequestError):
    """The request was cancelled by something other than its caller's face."""

    status = Status.CANCELLED


class InternalError(RequestError):
    """Our fault. The caller gets ``log_id`` and no detail; the log has the detail."""

    status = Status.INTERNAL

    def __init__(self, log_id: str) -> None:
        super().__init__(f"internal error; the server's log has the details under log_id={log_id}")
        self.log_id = log_id


def of_variant(name: str, error: str) -> str:
    """An error with the variant that it is of; one that begins with a field says so itself."""
    return error if error.startswith(f"variants.{name}.") else f"{name}: {error}"
