"""What goes into and comes out of the core: frozen values without protobuf or numpy.

Knows nothing of how a call is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from server.engine.messages import FinishReason, Timings, Token, Usage
from server.parameters import SamplingCall


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt that the model's chat template makes.

    Attributes:
        messages: Each with ``role`` and mostly ``content``, as templates read them.
        tools: What the model may be told of tools, in JSON's terms.
        arguments: Further values for the template.
        continues: Go on with the last message instead of beginning a new one.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False


class FormatKind(StrEnum):
    """Ways to say what a text must keep to, by the names of the request's fields."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    GRAMMAR = "grammar"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What a text must keep to: a schema, expression or grammar, or the texts to choose from."""

    kind: FormatKind
    source: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """One request as it was read.

    Attributes:
        prompt: Text, token ids, a conversation, or None when the caller sent none of them. Ids may
            be a view of the caller's message.
        received_s: Seconds of the core's clock when it was read.
        variant: Empty: the routed one.
        sampling: As the caller wrote it.
        routing_key: Requests with the same key reach the same variant.
        deadline_s: Seconds of the core's clock after which nobody wants the answer.
        echo: Begin the text with the prompt.
        prompt_logprobs: None for none, else of the prompt's tokens and so many alternatives.
        truncate_prompt_tokens: Keep so many of the prompt's last tokens; None for all.
        priority: Lower ones are served first.
        response_format: None for any text.
        client: Who asks, for fairness; empty for nobody in particular.
    """

    prompt: str | Sequence[int] | Conversation | None
    received_s: float
    variant: str = ""
    sampling: SamplingCall = field(default_factory=SamplingCall)
    routing_key: str = ""
    deadline_s: float | None = None
    echo: bool = False
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    priority: int = 0
    response_format: ResponseFormat | None = None
    client: str = ""


@dataclass(frozen=True, slots=True)
class Finish:
    """How one choice ended well; ``truncated_tokens`` of the prompt were left out."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    variant: str
    artifact: str
    seed: int
    stop_token_id: int | None = None
    stop_string: str | None = None
    truncated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """One step's share of one choice; ``finish`` is set in a choice's last one only.

    ``scored`` are tokens of the prompt with their log-probabilities, in the first outputs;
    ``variant`` is who answers; ``prompt_tokens`` is how long the prompt was.
    """

    text: str
    tokens: Sequence[Token]
    finish: Finish | None = None
    choice: int = 0
    scored: Sequence[Token] = ()
    variant: str = ""
    prompt_tokens: int = 0
