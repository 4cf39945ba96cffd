"""One connection of an HTTP listener: how long each part of a request may take.

A peer that does not finish its head or body, or does not read its answer, is cut off in time, so
that it holds neither a connection nor what stands behind one. Owns the timers of a connection.
Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What connections may take.

    Attributes:
        most: How many there may be; a further one is closed at once.
        header_bytes: A request's head may have.
        header_s: Seconds for a head, from the connection or from its first byte, and for TLS.
        body_s: Seconds for a body.
        idle_s: Whole seconds between an answer and the next request.
        unread_s: Seconds in which a peer takes nothing of an answer.
    """

    most: int = 1024
    header_bytes: int = 16 << 10
    header_s: float = 10.0
    body_s: float = 60.0
    idle_s: int = 600
    unread_s: float = 60.0


class Connection(H11Protocol):
    """uvicorn's, with an end to everything that its peer may draw out."""

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits
        self._part: tuple[str, Any] = ("", None)  # what is awaited of the peer, of which request
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if there are not too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.most:
            transport.abort()
            return
        self._wait_for("head", self._limits.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._stop_reading()
        self._stop_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, and look how far the request is."""
        super().data_received(data)
        state = self.conn.their_state
        if state is h11.IDLE:  # some of a head is there
            self._wait_for("head", self._limits.header_s)
        elif state is h11.SEND_BODY:
            self._wait_for("body", self._limits.body_s)
        else:
            self._stop_reading()

    def on_response_complete(self) -> None:
        """An answer was given; a body that nobody wanted may still come."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            self._stop_reading()  # the keep-alive timer runs

    def pause_writing(self) -> None:
        """The peer does not read."""
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self._limits.unread_s, self._cut)

    def resume_writing(self) -> None:
        """It does again."""
        self._stop_writing()
        super().resume_writing()

    def _wait_for(self, part: str, seconds: float) -> None:
        """Begin to wait for a part of a request, unless it is waited for already."""
        wanted = (part, self.cycle)
        if self._reading is None or self._part != wanted:
            self._stop_reading()
            self._part = wanted
            self._reading = self.loop.call_later(seconds, self._cut)

    def _cut(self) -> None:
        self.transport.abort()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
