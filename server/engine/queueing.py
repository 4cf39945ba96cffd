"""Who of those that wait for a slot of one variant is next.

Lower priorities first. Among requests of one priority, start-time fair queueing (Goyal, Vin and
Cheng, "Start-time fair queuing", SIGCOMM 1996) over clients: each client has been given some
tokens, prompt and max_tokens together, and the waiting one that has been given least is next; a
client's own requests come in order of arrival. Who asks for much, or for many answers, delays
itself and nobody else. A client that begins to wait starts where the others are: it saves nothing
up while it asks for nothing, and is not forgiven what it is ahead. A request that leaves before its
turn costs its client nothing.

Owns the queue. Knows nothing of slots, of time or of how clients are told apart.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator

from server.engine.sequence import Sequence

_MOST_REMEMBERED = 1024


class WaitingLine:
    """The waiting sequences of one variant."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}  # by priority
        self._length = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        """All of them, in no order that means anything."""
        for level in self._levels.values():
            yield from level

    def push(self, sequence: Sequence) -> None:
        """Add one."""
        priority = sequence.request.priority
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level()
        level.push(sequence)
        self._length += 1

    def first(self) -> Sequence | None:
        """Whose turn it is; None when nobody waits."""
        return self._levels[min(self._levels)].first() if self._levels else None

    def take(self, sequence: Sequence) -> None:
        """Give ``first()`` its turn: its client is charged for it."""
        self._remove(sequence, charged=True)

    def remove(self, sequence: Sequence) -> None:
        """Take one out that does not want its turn any more.

        Raises:
            ValueError: It does not wait.
        """
        self._remove(sequence, charged=False)

    def clear(self) -> None:
        """Take all out."""
        self._levels.clear()
        self._length = 0

    def _remove(self, sequence: Sequence, *, charged: bool) -> None:
        priority = sequence.request.priority
        level = self._levels[priority]
        level.remove(sequence, charged=charged)
        self._length -= 1
        if level.is_empty:
            # Nobody is behind any more, so that nobody is ahead of anybody.
            del self._levels[priority]


class _Level:
    """Those of one priority."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[tuple[int, Sequence]]] = {}  # by client, none of them empty
        self._given: dict[str, float] = {}  # tokens, by client
        self._now = 0.0  # what the client whose turn was last had been given before it
        self._arrivals = itertools.count()

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            for _, sequence in line:
                yield sequence

    @property
    def is_empty(self) -> bool:
        return not self._lines

    def push(self, sequence: Sequence) -> None:
        client = sequence.request.client
        line = self._lines.get(client)
        if line is None:
            line = self._lines[client] = deque()
            self._given[client] = max(self._given.get(client, 0.0), self._now)
            self._forget()
        line.append((next(self._arrivals), sequence))

    def first(self) -> Sequence:
        return self._lines[self._next()][0][1]

    def remove(self, sequence: Sequence, *, charged: bool) -> None:
        client = sequence.request.client
        line = self._lines[client]
        index = next((i for i, (_, waiting) in enumerate(line) if waiting is sequence), None)
        if index is None:
            raise ValueError(f"{sequence.request.request_id} does not wait.")
        del line[index]
        if not line:
            del self._lines[client]
        if charged:
            self._now = self._given[client]
            self._given[client] += sequence.reserve

    def _next(self) -> str:
        """The client that has been given least; of several, the one whose request came first."""
        return min(self._lines, key=lambda client: (self._given[client], self._lines[client][0][0]))

    def _forget(self) -> None:
        """Forget those who ask for nothing, should there be very many."""
        if len(self._given) > _MOST_REMEMBERED + len(self._lines):
            self._given = {client: self._given[client] for client in self._lines}
