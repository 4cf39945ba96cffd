"""What goes into and comes out of the core: frozen values without protobuf or numpy.

Knows nothing of how a call is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.engine.messages import FinishReason, Timings, Token, Usage
from server.parameters import SamplingCall


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """One request as it was read.

    Attributes:
        prompt: Text, token ids, or None when the caller sent neither. Ids may be a view of the
            caller's message.
        received_s: Seconds of the core's clock when it was read.
        variant: Empty: the routed one.
        sampling: As the caller wrote it.
        routing_key: Requests with the same key reach the same variant.
        deadline_s: Seconds of the core's clock after which nobody wants the answer.
    """

    prompt: str | Sequence[int] | None
    received_s: float
    variant: str = ""
    sampling: SamplingCall = field(default_factory=SamplingCall)
    routing_key: str = ""
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """How a request ended well."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    variant: str
    artifact: str
    seed: int
    stop_token_id: int | None = None
    stop_string: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One step's share of one request; ``finish`` is set in the last one only."""

    text: str
    tokens: Sequence[Token]
    finish: Finish | None = None
