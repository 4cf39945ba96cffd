"""From the engine's thread to the requests on the event loop: one hand-over per step.

Owns the requests that the engine works on and what has not been read of each. A reader that does
not read holds up nobody and keeps no more than its own tokens. Knows nothing of text.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from server.engine.messages import Event, Failed, Finished, Generated, Scored, Token

OnFinal = Callable[[Finished | Failed], None]
"""Is told of the final event of each request, whether or not anybody still reads."""


class Step:
    """What one engine step did for one request."""

    __slots__ = ("final", "request_id", "scored", "tokens")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.tokens: Sequence[Token] = ()
        self.scored: Sequence[Scored] = ()
        self.final: Finished | Failed | None = None

    def add(self, event: Event) -> None:
        """Take one of the step's events; they come in order."""
        match event:
            case Generated():
                self.tokens = (*self.tokens, *event.tokens) if self.tokens else event.tokens
            case Scored():
                self.scored = (*self.scored, event)
            case _:
                self.final = event


class Mailbox:
    """Steps of some requests that were not read yet. One reader, on the event loop."""

    __slots__ = ("_reader", "_steps", "on_final", "open")

    def __init__(self, request_ids: Iterable[str], on_final: OnFinal) -> None:
        self._steps: deque[Step] = deque()
        self._reader: asyncio.Future[None] | None = None
        self.on_final = on_final
        self.open = set(request_ids)
        """Those that the engine has not ended."""

    def put(self, step: Step) -> None:
        """Add a step and wake the reader."""
        self._steps.append(step)
        if step.final is not None:
            self.open.discard(step.request_id)
            self.on_final(step.final)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> Step:
        """The next step; waits for it."""
        while not self._steps:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._steps.popleft()


class Mailroom:
    """All requests that the engine has not ended. Built and used on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._mailboxes: dict[str, Mailbox] = {}

    def open(self, request_ids: Sequence[str], on_final: OnFinal) -> Mailbox:
        """Begin to take events of requests; ``on_final`` is called as each one ends."""
        mailbox = Mailbox(request_ids, on_final)
        self._mailboxes.update(dict.fromkeys(request_ids, mailbox))
        return mailbox

    def deliver(self, events: Sequence[Event]) -> None:
        """Take all events of one step, on any thread; does not block."""
        try:
            self._loop.call_soon_threadsafe(self._sort, events)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def end_all(self, final: Callable[[str], Failed]) -> tuple[str, ...]:
        """End every open request here and now; return their ids."""
        ids = tuple(self._mailboxes)
        self._sort([final(request_id) for request_id in ids])
        return ids

    def _sort(self, events: Sequence[Event]) -> None:
        """Give each request its share of a step."""
        steps: dict[str, Step] = {}
        for event in events:
            step = steps.get(event.request_id)
            if step is None:
                step = steps[event.request_id] = Step(event.request_id)
            step.add(event)
        for request_id, step in steps.items():
            # Events of a request that was ended here are of no interest to anybody.
            if (mailbox := self._mailboxes.get(request_id)) is None:
                continue
            if step.final is not None:
                del self._mailboxes[request_id]
            mailbox.put(step)
