"""One request's account: what telemetry is told about it, exactly once.

Knows nothing of metric names.
"""

from __future__ import annotations

from collections.abc import Callable

from server.engine.messages import Timings, Usage
from server.errors import Status
from server.observer import RequestObserver, RequestRecord


class Account:
    """Collects a request's figures while it runs."""

    __slots__ = (
        "_clock",
        "_last_tokens_s",
        "_observer",
        "_received_s",
        "status",
        "timings",
        "usage",
        "variant",
    )

    def __init__(
        self, observer: RequestObserver, clock: Callable[[], float], received_s: float
    ) -> None:
        self._observer = observer
        self._clock = clock
        self._received_s = received_s
        self._last_tokens_s: dict[int, float] = {}  # by choice
        self.variant = ""
        self.status = Status.INTERNAL
        self.usage = Usage(0, 0, 0)
        self.timings: Timings | None = None

    def submitted(self, prompt_tokens: int) -> None:
        """The engine has the request now."""
        self._observer.submitted(self.variant, prompt_tokens)

    def handed_over(self, count: int, choice: int = 0) -> None:
        """``count`` tokens of a choice go to the stream now."""
        if not count:
            return
        self._observer.generated(self.variant, count)
        now = self._clock()
        last = self._last_tokens_s.get(choice)
        is_first = not self._last_tokens_s
        self._last_tokens_s[choice] = now
        if last is not None:
            self._observer.next_tokens(self.variant, (now - last) / count, count)
            return
        if is_first:
            self._observer.first_token(self.variant, now - self._received_s)
        if count > 1:  # they came together with the first: no gap
            self._observer.next_tokens(self.variant, 0.0, count - 1)

    def close(self) -> None:
        """Report the request."""
        self._observer.finished(
            RequestRecord(
                variant=self.variant,
                status=self.status,
                duration_s=self._clock() - self._received_s,
                prompt_tokens=self.usage.prompt_tokens,
                completion_tokens=self.usage.completion_tokens,
                cached_tokens=self.usage.cached_tokens,
                choices=len(self._last_tokens_s),
                timings=self.timings if self.status is Status.OK else None,
            )
        )
