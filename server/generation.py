"""One request on the engine: its steps into outputs.

Owns what a step means to the caller: text, stop strings, usage, the finish. Knows nothing of
admission, of telemetry or of who reads the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from artifacts.detokenizer import create_detokenizer
from server.calls import Finish, Output
from server.engine.messages import (
    Cancel,
    Command,
    Failed,
    Finished,
    FinishReason,
    Submit,
    Timings,
    Token,
    Usage,
)
from server.errors import CancelledByEngineError
from server.mailbox import Mailbox, Step
from server.selection import Serving
from server.transcript import Transcript


class EngineFailure(Exception):  # noqa: N818 - it carries an event, the core makes the error of it
    """The engine ended the request with an error."""

    def __init__(self, event: Failed) -> None:
        super().__init__(event.message)
        self.event = event


class Generation:
    """A submitted request. ``leave`` must be called when nobody reads it any more."""

    def __init__(
        self,
        submit: Submit,
        serving: Serving,
        stops: Sequence[str],
        mailbox: Mailbox,
        post: Callable[[Command], None],
    ) -> None:
        self._submit = submit
        self._serving = serving
        self._mailbox = mailbox
        self._post = post
        self._transcript = Transcript(
            create_detokenizer(serving.tokenizer, submit.prompt),
            stops,
            min_tokens=submit.sampling.min_tokens,
        )
        self.cached_tokens = 0
        self.timings: Timings | None = None

    @property
    def usage(self) -> Usage:
        """Tokens so far, up to the stop."""
        return Usage(
            prompt_tokens=len(self._submit.prompt),
            completion_tokens=self._transcript.completion_tokens,
            cached_tokens=self.cached_tokens,
        )

    async def next(self) -> Output:
        """The next step's output; the last one has ``finish``.

        Raises:
            EngineFailure: The engine failed the request.
            CancelledByEngineError: The engine cancelled it, and not because of ``leave``.
        """
        while True:
            output = self._take(await self._mailbox.get())
            if output is not None:
                return output

    def leave(self) -> None:
        """Nobody reads any more: have the engine stop, unless it has."""
        if not self._mailbox.final:
            self._post(Cancel(self._submit.request_id, FinishReason.CANCELLED))

    def _take(self, step: Step) -> Output | None:
        transcript = self._transcript
        text = ""
        tokens = step.tokens
        if transcript.stop_string is not None:
            tokens = ()  # computed before the engine heard of the stop
        elif tokens:
            text, tokens = transcript.push(tokens, silent_last=_ends_with_stop_token(step))
            if transcript.stop_string is not None and step.final is None:
                self._post(Cancel(self._submit.request_id, FinishReason.STOP))
        if step.final is not None:
            return self._end(step.final, text, tokens)
        return Output(text, tokens) if tokens else None

    def _end(self, final: Finished | Failed, text: str, tokens: Sequence[Token]) -> Output:
        self.cached_tokens = final.usage.cached_tokens
        self.timings = final.timings
        text += self._transcript.flush()
        stop_string = self._transcript.stop_string
        stop_token_id: int | None = None
        if stop_string is not None:
            # The answer was whole before whatever else ended the request.
            reason = FinishReason.STOP
        elif isinstance(final, Failed):
            raise EngineFailure(final)
        elif final.reason is FinishReason.CANCELLED:
            raise CancelledByEngineError("the request was cancelled.")
        else:
            reason = final.reason
            stop_token_id = final.stop_token_id
        finish = Finish(
            reason=reason,
            usage=self.usage,
            timings=final.timings,
            variant=self._serving.name,
            artifact=self._serving.artifact,
            seed=self._submit.sampling.seed,
            stop_token_id=stop_token_id,
            stop_string=stop_string,
        )
        return Output(text, tokens, finish)


def _ends_with_stop_token(step: Step) -> bool:
    """Whether the step's last token is the one that ended the request, and so is no text."""
    final = step.final
    return (
        isinstance(final, Finished)
        and final.stop_token_id is not None
        and bool(step.tokens)
        and step.tokens[-1].token_id == final.stop_token_id
    )
