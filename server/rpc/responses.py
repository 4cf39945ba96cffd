"""Outputs of the core into messages, one per engine step; so nothing here is done twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protos import inference_pb2 as pb
from server.calls import Finish, Output
from server.engine.messages import FinishReason, Token

_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TIME: pb.FINISH_REASON_TIME,
}


def generate_response(output: Output, *, logprobs: bool) -> pb.GenerateResponse:
    """One message of the stream."""
    response = pb.GenerateResponse(
        text=output.text,
        token_ids=[token.token_id for token in output.tokens],
        choice=output.choice,
    )
    if logprobs:
        response.logprobs.extend(_logprobs(output.tokens))
    if output.scored:
        response.prompt_logprobs.extend(_logprobs(output.scored))
    if output.finish is not None:
        _fill_finish(response.finish, output.finish)
    return response


def complete_response(outputs: Sequence[Output], *, logprobs: bool) -> pb.CompleteResponse:
    """The whole answer; the last output of each choice has its finish."""
    count = 1 + max(output.choice for output in outputs)
    choices = [
        _choice([output for output in outputs if output.choice == index], logprobs=logprobs)
        for index in range(count)
    ]
    first = choices[0]
    response = pb.CompleteResponse(
        text=first.text,
        token_ids=first.token_ids,
        logprobs=first.logprobs,
        finish=first.finish,
        choices=choices if count > 1 else (),
    )
    for output in outputs:
        response.prompt_logprobs.extend(_logprobs(output.scored))
    return response


def _choice(outputs: Sequence[Output], *, logprobs: bool) -> pb.CompleteResponse.Choice:
    message = pb.CompleteResponse.Choice(
        text="".join(output.text for output in outputs),
        token_ids=[token.token_id for output in outputs for token in output.tokens],
    )
    if logprobs:
        for output in outputs:
            message.logprobs.extend(_logprobs(output.tokens))
    if (finish := outputs[-1].finish) is not None:
        _fill_finish(message.finish, finish)
    return message


def _logprobs(tokens: Iterable[Token]) -> Iterable[pb.TokenLogprobs]:
    for token in tokens:
        yield pb.TokenLogprobs(
            token_id=token.token_id,
            logprob=token.logprob,
            top=[
                pb.TokenLogprobs.Alternative(token_id=other.token_id, logprob=other.logprob)
                for other in token.top
            ],
        )


def _fill_finish(message: pb.Finish, finish: Finish) -> None:
    message.reason = _REASONS[finish.reason]
    if finish.stop_string is not None:
        message.stop_string = finish.stop_string
    elif finish.stop_token_id is not None:
        message.stop_token_id = finish.stop_token_id
    message.usage.prompt_tokens = finish.usage.prompt_tokens
    message.usage.completion_tokens = finish.usage.completion_tokens
    message.usage.cached_tokens = finish.usage.cached_tokens
    message.usage.truncated_tokens = finish.truncated_tokens
    message.usage.draft_tokens = finish.usage.draft_tokens
    message.usage.accepted_tokens = finish.usage.accepted_tokens
    message.timings.queue_seconds = finish.timings.queue_s
    message.timings.prefill_seconds = finish.timings.prefill_s
    message.timings.decode_seconds = finish.timings.decode_s
    message.variant = finish.variant
    message.seed = finish.seed
    message.artifact = finish.artifact
