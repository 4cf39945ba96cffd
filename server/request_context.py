"""Which request is being answered: its id, and its trace when it is traced.

Owns what ids are taken from callers and the context variable that carries them through a request's
tasks, so that logs, metrics and traces speak of the same request. Knows nothing of gRPC, HTTP or
OpenTelemetry.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

REQUEST_ID = "x-request-id"
"""Metadata of gRPC and header of HTTP that carry the id, both ways."""

LONGEST_ID = 96  # an exemplar's labels have room for 128 characters, their names included
_SANE = re.compile(rf"[A-Za-z0-9._:=+/-]{{1,{LONGEST_ID}}}")


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What is known of a request besides what it asks.

    Attributes:
        request_id: The caller's own, or one that was made here.
        trace_id: 32 hexadecimal digits; empty while nobody samples the request.
        parent: What spans of the request hang below, in the tracing library's terms.
    """

    request_id: str
    trace_id: str = ""
    parent: Any = None

    @property
    def exemplar(self) -> dict[str, str] | None:
        """Labels that lead from a latency to the request; None outside of any."""
        if self.trace_id:
            return {"trace_id": self.trace_id}
        return {"request_id": self.request_id} if self.request_id else None


NO_REQUEST = RequestContext("")

_current: ContextVar[RequestContext] = ContextVar("request", default=NO_REQUEST)


def current() -> RequestContext:
    """The request that this task answers; ``NO_REQUEST`` where it answers none."""
    return _current.get()


def begin(offered: str | None) -> RequestContext:
    """From now on this task answers a request.

    Args:
        offered: The caller's id. It is kept if it is short and of harmless characters, since it
            goes into logs, headers and metrics; else another is made.
    """
    is_sane = offered is not None and _SANE.fullmatch(offered) is not None
    context = RequestContext(offered if is_sane and offered else secrets.token_hex(16))
    _current.set(context)
    return context


def begin_part(number: int) -> None:
    """From now on this task answers one of several requests that came in one stream."""
    whole = _current.get()
    _current.set(replace(whole, request_id=f"{whole.request_id}/{number}"))


def traced(trace_id: str, parent: Any) -> None:
    """The request of this task is traced."""
    _current.set(replace(_current.get(), trace_id=trace_id, parent=parent))
