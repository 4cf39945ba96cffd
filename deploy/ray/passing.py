"""What ingress and replica say to each other: calls of the gRPC API as bytes, and how they end.

Messages are not read on the way, so whatever the API learns passes. Knows nothing of Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

Metadata = tuple[tuple[str, str | bytes], ...]

# Of the metadata of a call, what is the server's to see; the rest is the transport's.
_PASSED = ("authorization", "traceparent", "tracestate", "x-request-id")


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the method's name in the service, whether it streams, the request, and who asks."""

    method: str
    streams: bool
    request: bytes
    metadata: Metadata = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call ended that did not end well: gRPC's status code by name, its words, trailers."""

    code: str
    details: str
    trailers: Metadata = ()


def passed(metadata: list[tuple[str, str | bytes]]) -> Metadata:
    """The part of a client's metadata that goes to the server."""
    return tuple((key, value) for key, value in metadata if key in _PASSED)
