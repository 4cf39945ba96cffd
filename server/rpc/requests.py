"""Messages of callers into calls of the core. Converts and nothing else: the core judges."""

from __future__ import annotations

from collections.abc import Sequence

from protos import inference_pb2 as pb
from server.calls import GenerateCall
from server.parameters import SamplingCall

_OPTIONAL = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "min_tokens",
    "ignore_eos",
    "logprobs",
)


def generate_call(
    request: pb.GenerateRequest, *, received_s: float, remaining_s: float | None
) -> GenerateCall:
    """The call that a request asks for; ``remaining_s`` is the time until its deadline."""
    prompt: str | Sequence[int] | None = None
    match request.WhichOneof("prompt"):
        case "text":
            prompt = request.text
        case "token_ids":
            prompt = request.token_ids.ids
    return GenerateCall(
        prompt=prompt,
        received_s=received_s,
        variant=request.variant,
        sampling=_sampling(request.sampling),
        routing_key=request.routing_key,
        deadline_s=None if remaining_s is None else received_s + remaining_s,
    )


def _sampling(message: pb.SamplingParameters) -> SamplingCall:
    chosen = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    return SamplingCall(
        **chosen,
        logit_bias=message.logit_bias,
        stop=message.stop,
        stop_token_ids=message.stop_token_ids,
    )
