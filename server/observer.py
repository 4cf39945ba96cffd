"""What the API side tells telemetry about requests. All calls come on the event loop.

Knows nothing of metric names or of who listens. ``variant`` is a configured name or ``""`` (an
unknown variant), never the caller's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.messages import FinishReason, Timings
from server.errors import Status
from server.parameters import SamplingCall
from server.request_context import NO_REQUEST, RequestContext
from server.shadow_scores import Shadowed


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request.

    Attributes:
        variant: A configured name, or ``""`` when the caller named an unknown one.
        status: How it ended.
        duration_s: Seconds from the request read to its last message handed to the stream.
        prompt_tokens: Tokens of the prompt; 0 when it was refused before they were counted.
        completion_tokens: Generated tokens of all choices, up to the stop.
        cached_tokens: Prompt tokens whose cache entries were reused.
        timings: Queue, prefill and decode seconds, as far as the engine told them. Those of a
            request that did not end well belong into no latency: they would pull it down.
        choices: How many answers it has tokens of.
        operation: ``chat`` or ``text_completion``.
        requested: The variant that the caller named, ``""`` for routed traffic and for an unknown
            one.
        artifact: What answered; ``""`` when it was refused.
        sampling: As the caller wrote it. Stop strings and bad words are texts of the caller's.
        finishes: How each choice ended, in the order in which they did.
        submitted_s: When the engine got it, from when it was read; None when it was refused.
        first_token_s: When the first token was handed to the stream.
        last_token_s: When the last one was.
        context: Its id and trace.
        draft_tokens: Tokens that were guessed and checked.
        accepted_tokens: Guesses that were right.
    """

    variant: str
    status: Status
    duration_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    timings: Timings | None = None
    choices: int = 0
    operation: str = "text_completion"
    requested: str = ""
    artifact: str = ""
    sampling: SamplingCall | None = None
    finishes: Sequence[FinishReason] = ()
    submitted_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    context: RequestContext = NO_REQUEST
    draft_tokens: int = 0
    accepted_tokens: int = 0


class RequestObserver:
    """The default ignores everything.

    Tokens are told while a request runs: a stream may last longer than anybody looks back.
    """

    def submitted(self, variant: str, prompt_tokens: int) -> None:
        """A request went to the engine."""

    def generated(self, variant: str, count: int) -> None:
        """``count`` tokens of one step were handed to the stream."""

    def first_token(self, variant: str, seconds: float) -> None:
        """The first token was handed to the stream, ``seconds`` after the request was read."""

    def next_tokens(self, variant: str, seconds_per_token: float, count: int) -> None:
        """``count`` further tokens: the step's gap divided over them, one observation each."""

    def finished(self, record: RequestRecord) -> None:
        """A request ended; called exactly once for each one that was read."""

    def shadowed(self, one: Shadowed) -> None:
        """A candidate was judged on an answer."""

    def shadow_dropped(self, candidate: str) -> None:
        """An answer that a candidate was to be judged on was not looked at after all."""


class Observers(RequestObserver):
    """Tells several."""

    def __init__(self, *observers: RequestObserver) -> None:
        self._observers = observers

    def submitted(self, variant: str, prompt_tokens: int) -> None:
        """See ``RequestObserver``."""
        for observer in self._observers:
            observer.submitted(variant, prompt_tokens)

    def generated(self, variant: str, count: int) -> None:
        """See ``RequestObserver``."""
        for observer in self._observers:
            observer.generated(variant, count)

    def first_token(self, variant: str, seconds: float) -> None:
        """See ``RequestObserver``."""
        for observer in self._observers:
            observer.first_token(variant, seconds)

    def next_tokens(self, variant: str, seconds_per_token: float, count: int) -> None:
        """See ``RequestObserver``."""
        for observer in self._observers:
            observer.next_tokens(variant, seconds_per_token, count)

    def finished(self, record: RequestRecord) -> None:
        """See ``RequestObserver``."""
        for observer in self._observers:
            observer.finished(record)

    def shadowed(self, one: Shadowed) -> None:
        """See ``RequestObserver``."""
        for observer in self._observers:
            observer.shadowed(one)

    def shadow_dropped(self, candidate: str) -> None:
        """See ``RequestObserver``."""
        for observer in self._observers:
            observer.shadow_dropped(candidate)
