"""One choice of a request on the engine: its steps into outputs.

Owns what a step means to the caller: text, stop strings, usage, the finish. Knows nothing of
admission, of telemetry, of the request's other choices or of who reads the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
from server.mailbox import Step
from server.selection import Serving
from server.transcript import Transcript


class EngineFailure(Exception):  # noqa: N818 - it carries an event, the core makes the error of it
    """The engine ended the request with an error."""

    def __init__(self, event: Failed) -> None:
        super().__init__(event.message)
        self.event = event


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How tokens become the text that a caller sees.

    Attributes:
        stops: Strings that end it.
        skip_special_tokens: Whether tokens that are no text are left out.
        include_stop: Whether it holds the stop string or token that ended it.
        echo: What it begins with.
    """

    stops: tuple[str, ...] = ()
    skip_special_tokens: bool = True
    include_stop: bool = False
    echo: str = ""


class Generation:
    """A submitted choice."""

    def __init__(
        self,
        submit: Submit,
        serving: Serving,
        options: TextOptions,
        post: Callable[[Command], None],
        *,
        choice: int = 0,
        truncated_tokens: int = 0,
    ) -> None:
        self._submit = submit
        self._serving = serving
        self._options = options
        self._post = post
        self._choice = choice
        self._truncated_tokens = truncated_tokens
        skip = options.skip_special_tokens
        self._transcript = Transcript(
            create_detokenizer(serving.tokenizer, submit.prompt, skip_special_tokens=skip),
            options.stops,
            min_tokens=submit.sampling.min_tokens,
            include_stop=options.include_stop,
        )
        self._echo = options.echo
        # Nothing precedes the prompt's first token, so that it has no log-probability.
        self._unscored = (Token(submit.prompt[0]),) if submit.scoring is not None else ()
        self._computed = Usage(len(submit.prompt), 0, 0)
        self.timings: Timings | None = None

    @property
    def usage(self) -> Usage:
        """Tokens so far, up to the stop; what the engine alone knows comes with its final event."""
        return replace(self._computed, completion_tokens=self._transcript.completion_tokens)

    def take(self, step: Step) -> Output | None:
        """What a step brings; the last output has ``finish``.

        Raises:
            EngineFailure: The engine failed the request.
            CancelledByEngineError: The engine cancelled it, and not because its caller has left.
        """
        transcript = self._transcript
        text, self._echo = self._echo, ""
        tokens = step.tokens
        if transcript.stop_string is not None:
            tokens = ()  # computed before the engine heard of the stop
        elif tokens:
            silent = not self._options.include_stop and _ends_with_stop_token(step)
            piece, tokens = transcript.push(tokens, silent_last=silent)
            text += piece
            if transcript.stop_string is not None and step.final is None:
                self._post(Cancel(self._submit.request_id, FinishReason.STOP))
        scored, self._unscored = self._unscored, ()
        if step.scored:
            scored = (*scored, *(token for event in step.scored for token in event.tokens))
        if step.final is not None:
            return self._end(step.final, text, tokens, scored)
        if not (tokens or scored or text):
            return None
        return self._output(text, tokens, scored)

    def _end(
        self,
        final: Finished | Failed,
        text: str,
        tokens: Sequence[Token],
        scored: Sequence[Token],
    ) -> Output:
        self._computed = final.usage
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
            truncated_tokens=self._truncated_tokens,
        )
        return self._output(text, tokens, scored, finish)

    def _output(
        self,
        text: str,
        tokens: Sequence[Token],
        scored: Sequence[Token],
        finish: Finish | None = None,
    ) -> Output:
        return Output(
            text,
            tokens,
            finish,
            self._choice,
            scored,
            variant=self._serving.name,
            prompt_tokens=len(self._submit.prompt),
        )


def _ends_with_stop_token(step: Step) -> bool:
    """Whether the step's last token is the one that ended the request, and so is no text."""
    final = step.final
    return (
        isinstance(final, Finished)
        and final.stop_token_id is not None
        and bool(step.tokens)
        and step.tokens[-1].token_id == final.stop_token_id
    )
