"""One request's account: what telemetry is told about it, exactly once.

Knows nothing of metric names.
"""

from __future__ import annotations

from collections.abc import Callable

from server.calls import Conversation, GenerateCall
from server.engine.messages import FinishReason, Timings, Usage
from server.errors import Status
from server.observer import RequestObserver, RequestRecord
from server.request_context import current


class Account:
    """Collects a request's figures while it runs. Make it in the request's own task."""

    __slots__ = (
        "_call",
        "_clock",
        "_context",
        "_first_token_s",
        "_last_tokens_s",
        "_observer",
        "_submitted_s",
        "artifact",
        "finishes",
        "status",
        "timings",
        "usage",
        "variant",
    )

    def __init__(
        self, observer: RequestObserver, clock: Callable[[], float], call: GenerateCall
    ) -> None:
        self._observer = observer
        self._clock = clock
        self._call = call
        # Who ends a stream that its caller abandoned need not be its task.
        self._context = current()
        self._submitted_s: float | None = None
        self._first_token_s: float | None = None
        self._last_tokens_s: dict[int, float] = {}  # by choice
        self.variant = ""
        self.artifact = ""
        self.status = Status.INTERNAL
        self.usage = Usage(0, 0, 0)
        self.timings: Timings | None = None
        self.finishes: list[FinishReason] = []

    def submitted(self, prompt_tokens: int) -> None:
        """The engine has the request now."""
        self._submitted_s = self._clock() - self._call.received_s
        self._observer.submitted(self.variant, prompt_tokens)

    def handed_over(self, count: int, choice: int = 0) -> None:
        """``count`` tokens of a choice go to the stream now."""
        if not count:
            return
        self._observer.generated(self.variant, count)
        now = self._clock()
        last = self._last_tokens_s.get(choice)
        self._last_tokens_s[choice] = now
        if last is not None:
            self._observer.next_tokens(self.variant, (now - last) / count, count)
            return
        if self._first_token_s is None:
            self._first_token_s = now - self._call.received_s
            self._observer.first_token(self.variant, self._first_token_s)
        if count > 1:  # they came together with the first: no gap
            self._observer.next_tokens(self.variant, 0.0, count - 1)

    def close(self) -> None:
        """Report the request."""
        received_s = self._call.received_s
        is_chat = isinstance(self._call.prompt, Conversation)
        last_s = max(self._last_tokens_s.values(), default=None)
        self._observer.finished(
            RequestRecord(
                variant=self.variant,
                status=self.status,
                duration_s=self._clock() - received_s,
                prompt_tokens=self.usage.prompt_tokens,
                completion_tokens=self.usage.completion_tokens,
                cached_tokens=self.usage.cached_tokens,
                draft_tokens=self.usage.draft_tokens,
                accepted_tokens=self.usage.accepted_tokens,
                choices=len(self._last_tokens_s),
                timings=self.timings,
                operation="chat" if is_chat else "text_completion",
                requested=self.variant if self._call.variant else "",
                artifact=self.artifact,
                sampling=self._call.sampling,
                finishes=tuple(self.finishes),
                submitted_s=self._submitted_s,
                first_token_s=self._first_token_s,
                last_token_s=None if last_s is None else last_s - received_s,
                context=self._context,
            )
        )
