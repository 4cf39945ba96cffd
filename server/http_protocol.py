"""HTTP/1.1 of both listeners, with a limit on how long a request may take to arrive.

A peer that never finishes its request would hold its connection for ever. Knows nothing of what is
asked.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """One connection.

    Attributes:
        receive_s: Seconds for a request to arrive in, head and body, from when the server could
            read it.
    """

    receive_s = 30.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A peer is there."""
        super().connection_made(transport)
        self._expect()

    def handle_events(self) -> None:
        """Take what has arrived."""
        super().handle_events()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer has gone."""
        self._forget()
        super().connection_lost(exc)

    def _expect(self) -> None:
        """Wait for what is missing of a request, if something is."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._forget()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.receive_s, self.transport.close)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
