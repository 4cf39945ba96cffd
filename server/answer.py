"""All choices of one request on the engine, as one stream of outputs.

Owns whose step is whose, and that the engine stops what nobody reads. Knows nothing of text, of
admission or of telemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.calls import Output
from server.engine.messages import Cancel, Command, FinishReason, Timings, Usage
from server.generation import Generation
from server.mailbox import Mailbox


class Answer:
    """A submitted request. ``leave`` must be called when nobody reads it any more."""

    def __init__(
        self,
        choices: Sequence[tuple[str, Generation]],
        mailbox: Mailbox,
        post: Callable[[Command], None],
    ) -> None:
        self._choices = dict(choices)
        self._mailbox = mailbox
        self._post = post

    async def next(self) -> Output:
        """The next output of any choice.

        Raises:
            EngineFailure: The engine failed a choice, and so the request.
            CancelledByEngineError: The engine cancelled it, and not because of ``leave``.
        """
        while True:
            step = await self._mailbox.get()
            output = self._choices[step.request_id].take(step)
            if output is not None:
                return output

    def leave(self) -> None:
        """Nobody reads any more: have the engine stop what it has not ended."""
        for request_id in self._mailbox.open:
            self._post(Cancel(request_id, FinishReason.CANCELLED))

    @property
    def usage(self) -> Usage:
        """Tokens so far; the prompt counts once, however many choices answer it."""
        usages = [choice.usage for choice in self._choices.values()]
        return Usage(
            prompt_tokens=usages[0].prompt_tokens,
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            cached_tokens=usages[0].cached_tokens,
            draft_tokens=sum(usage.draft_tokens for usage in usages),
            accepted_tokens=sum(usage.accepted_tokens for usage in usages),
        )

    @property
    def timings(self) -> Timings | None:
        """Of the choice that took longest; None while any has not ended."""
        known = [choice.timings for choice in self._choices.values()]
        ended = [timings for timings in known if timings is not None]
        if len(ended) < len(known):
            return None
        return max(ended, key=lambda each: each.queue_s + each.prefill_s + each.decode_s)
