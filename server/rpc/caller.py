"""Who calls a gRPC method: the client of its token, else where it connects from.

The guard says whose token it is in the call's own context; nothing else travels from an interceptor
to a method. Knows nothing of tokens.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

from server.access import peer_client

CLIENT: ContextVar[str | None] = ContextVar("client", default=None)
"""Set by the guard, for the call that it let through."""


def client_of(context: Any) -> str:
    """The client's name, for fairness between clients."""
    return CLIENT.get() or peer_client(_address(context.peer()))


def _address(peer: str) -> str:
    """The address in ``ipv4:127.0.0.1:50051`` or ``ipv6:%5B::1%5D:50051``."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    return rest.rpartition(":")[0].strip("[]")
