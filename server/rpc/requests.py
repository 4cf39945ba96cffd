"""Messages of callers into calls of the core. Converts and nothing else: the core judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protos import inference_pb2 as pb
from server.calls import Conversation, FormatKind, GenerateCall, ResponseFormat
from server.errors import InvalidRequestError
from server.json_text import read_json
from server.parameters import SamplingCall

_OPTIONAL = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "min_tokens",
    "ignore_eos",
    "logprobs",
    "n",
    "max_time_seconds",
    "skip_special_tokens",
    "include_stop",
)
_KINDS: Mapping[type, str] = {list: "an array", dict: "an object"}


def generate_call(
    request: pb.GenerateRequest, *, received_s: float, remaining_s: float | None, client: str = ""
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
        echo=request.echo,
        prompt_logprobs=_optional(request, "prompt_logprobs"),
        client=client,
        **_common(request, received_s, remaining_s),
    )


def chat_call(
    request: pb.ChatRequest, *, received_s: float, remaining_s: float | None, client: str = ""
) -> GenerateCall:
    """The same for a conversation.

    Raises:
        InvalidRequestError: A field that holds JSON holds something else.
    """
    conversation = Conversation(
        messages=[_message(message, index) for index, message in enumerate(request.messages)],
        tools=_json("tools_json", request.tools_json, list),
        arguments=_json("template_arguments_json", request.template_arguments_json, dict),
        continues=request.continue_final_message,
    )
    common = _common(request, received_s, remaining_s)
    return GenerateCall(prompt=conversation, client=client, **common)


def _common(
    request: pb.GenerateRequest | pb.ChatRequest, received_s: float, remaining_s: float | None
) -> dict[str, Any]:
    """What both requests have."""
    return {
        "received_s": received_s,
        "variant": request.variant,
        "sampling": _sampling(request.sampling),
        "routing_key": request.routing_key,
        "deadline_s": None if remaining_s is None else received_s + remaining_s,
        "truncate_prompt_tokens": _optional(request, "truncate_prompt_tokens"),
        "priority": request.priority,
        "response_format": _format(request.response_format),
    }


def _sampling(message: pb.SamplingParameters) -> SamplingCall:
    chosen = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    return SamplingCall(
        **chosen,
        logit_bias=message.logit_bias,
        stop=message.stop,
        stop_token_ids=message.stop_token_ids,
        allowed_token_ids=message.allowed_token_ids,
        bad_words=message.bad_words,
    )


def _format(message: pb.ResponseFormat) -> ResponseFormat | None:
    field = message.WhichOneof("format")
    if field is None or (field == "json_object" and not message.json_object):
        return None
    kind = FormatKind(field)
    if kind is FormatKind.CHOICE:
        return ResponseFormat(kind, choices=tuple(message.choice.choices))
    return ResponseFormat(kind, "" if kind is FormatKind.JSON_OBJECT else getattr(message, field))


def _message(message: pb.ChatMessage, index: int) -> dict[str, Any]:
    """A message as templates read it: what is not set is not there."""
    found: dict[str, Any] = {"role": message.role}
    for name in ("content", "name", "tool_call_id"):
        if message.HasField(name):
            found[name] = getattr(message, name)
    if message.tool_calls_json:
        field = f"messages[{index}].tool_calls_json"
        found["tool_calls"] = _json(field, message.tool_calls_json, list)
    return found


def _json(field: str, text: str, kind: type[list[Any] | dict[str, Any]]) -> Any:
    if not text:
        return kind()
    value = read_json(field, text)
    if not isinstance(value, kind):
        raise InvalidRequestError(field, "holds JSON of another kind", f"send {_KINDS[kind]}")
    return value


def _optional(message: pb.GenerateRequest | pb.ChatRequest, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None
