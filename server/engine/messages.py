"""Frozen messages between the engine's thread and everybody else.

The engine's seam is two queues of these and nothing else. Knows nothing of text, of gRPC or of
how the engine works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts.session import DecoderSession
from server.engine.constraint import Constraint

if TYPE_CHECKING:
    from server.engine.drafter import Drafter

BACKGROUND = 1 << 31
"""The priority behind all others: such a request gives way to every one that waits for a slot."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens, all fields resolved (no "unset" is left).

    Order: logit_bias, penalties, what is excluded (early ends, allowed_token_ids, bad_words, the
    constraint), temperature, top_k, typical_p, top_p, min_p. ``temperature`` 0 is greedy.
    ``top_k`` 0, ``typical_p`` and ``top_p`` 1 and ``min_p`` 0 are off; penalties of 1 (repetition)
    and 0 are off. ``max_tokens`` 0 computes the prompt and generates nothing.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    typical_p: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    """Nothing else is generated; empty: everything may be."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of token ids that are not generated; none of them is empty."""
    seed: int = 0
    min_tokens: int = 0
    eos_token_ids: frozenset[int] = frozenset()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    """None: no log-probabilities. k >= 0: the chosen token's and those of the top k."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """Asks for log-probabilities of tokens that the prompt holds already.

    Attributes:
        first: Position of the first one in the prompt, at least 1: nothing precedes token 0.
        top: Of how many of the likeliest tokens at each position too.
        among: (n, k) int64, tokens whose log-probabilities are wanted at each of the ``n`` scored
            positions; None for none.
    """

    first: int
    top: int = 0
    among: NDArray[np.int64] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Submit:
    """Ask the engine to generate. ``prompt`` is not empty and fits with max_tokens into a slot."""

    request_id: str
    variant: str
    prompt: tuple[int, ...]
    sampling: Sampling
    received_s: float
    """Monotonic seconds when the request was read."""
    deadline_s: float | None = None
    """Monotonic seconds after which the request ends with DEADLINE_EXCEEDED."""
    stop_s: float | None = None
    """Monotonic seconds after which the request ends well, with what it has come to (``TIME``)."""
    queue_until_s: float | None = None
    """Monotonic seconds after which it ends with RESOURCE_EXHAUSTED unless it has a slot."""
    priority: int = 0
    """Lower ones get a slot first, and their prompts are computed first."""
    client: str = ""
    """Who asks: those who wait with one priority get equal shares by client."""
    constraint: Constraint | None = None
    """What the generated tokens must keep to; the engine's alone from now on."""
    scoring: Scoring | None = None
    recorded: int = 0
    """At each generated token, of how many of the likeliest the log-probabilities are kept beside
    it, whatever the caller asked for; 0 for none."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """The caller is gone, or has enough: free the slot within one step. Unknown ids are ignored.

    ``finish`` names the reason of the final event; a stop string found in the text is ``STOP``.
    """

    request_id: str
    finish: FinishReason


@dataclass(frozen=True, slots=True)
class Drafting:
    """Who guesses a variant's tokens, and how many at a time at most.

    ``rebuild`` makes a fresh one after a failed step. ``adaptive``: only as many as pay.
    """

    drafter: Drafter
    rebuild: Callable[[], Drafter]
    most_tokens: int
    adaptive: bool = True


@dataclass(frozen=True, slots=True)
class Attach:
    """Begin to serve a variant with this session.

    ``rebuild`` makes a fresh session after a failed step. ``kv_budget_tokens`` bounds the reserved
    tokens (prompt + max_tokens) over all running requests. ``weight`` is its share of engine time.
    """

    variant: str
    session: DecoderSession
    rebuild: Callable[[], DecoderSession]
    kv_budget_tokens: int
    step_tokens: int
    weight: float = 1.0
    drafting: Drafting | None = None


@dataclass(frozen=True, slots=True)
class Detach:
    """Stop serving a variant: new requests end UNAVAILABLE.

    So do those that it has, unless it leaves ``when_idle``: then they may finish. ``gone`` is
    called on the engine's thread when the last has ended; it must not block.
    """

    variant: str
    when_idle: bool = False
    gone: Callable[[], object] = lambda: None


@dataclass(frozen=True, slots=True)
class Reweigh:
    """Give a variant another share of engine time; unknown ones are ignored."""

    variant: str
    weight: float


@dataclass(frozen=True, slots=True)
class GiveWay:
    """Leave a little of the processor to one more who works in the background, or to one less."""

    begins: bool


Command = Submit | Cancel | Attach | Detach | Reweigh | GiveWay


class FinishReason(StrEnum):
    """Why a request ended without error."""

    STOP = "stop"
    LENGTH = "length"
    TIME = "time"
    CANCELLED = "cancelled"


class FailureCode(StrEnum):
    """Why a request ended with one; the words of gRPC's status codes in lower case."""

    INVALID_ARGUMENT = "invalid_argument"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One alternative: token id and its log-probability under the raw distribution, in nats."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the model thought of a position: the chosen token's log-probability, and the likeliest.

    ``ids`` is (k,) int64, the likeliest first; ``logprobs`` (k,) float32, in nats.
    """

    logprob: float
    ids: NDArray[np.int64] = field(compare=False)
    logprobs: NDArray[np.float32] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Token:
    """One token; ``logprob`` and ``top`` only when asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()
    recorded: Recorded | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one request inside the engine, as far as it came."""

    queue_s: float
    prefill_s: float
    decode_s: float

    @property
    def had_slot(self) -> bool:
        """Whether it got as far as a slot."""
        return self.prefill_s > 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens whose cache entries were reused from an earlier request."""
    draft_tokens: int = 0
    """Tokens that were guessed and checked."""
    accepted_tokens: int = 0
    """Guessed tokens that were right, and came for nothing."""


@dataclass(frozen=True, slots=True)
class Generated:
    """Tokens of one step for one request."""

    request_id: str
    tokens: tuple[Token, ...]
    emitted_s: float


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens of the prompt, in order, with their log-probabilities; ``among`` is (n, k), nats."""

    request_id: str
    tokens: tuple[Token, ...]
    among: NDArray[np.float32] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Finished:
    """The one final event of a request that ended well (or was cancelled)."""

    request_id: str
    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The one final event of a request that did not."""

    request_id: str
    code: FailureCode
    message: str
    usage: Usage
    timings: Timings


Event = Generated | Scored | Finished | Failed

Deliver = Callable[[Sequence[Event]], None]
"""Takes all events of one step at once. Called on the engine's thread; must not block."""


@dataclass(frozen=True, slots=True)
class VariantLoad:
    """A variant's gauges after a step."""

    running_requests: int
    waiting_requests: int
    reserved_tokens: int
    kv_budget_tokens: int
    batch_rows: int


class StepKind(StrEnum):
    """What a step computed: prompt tokens only, generated tokens only, or both."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class EngineObserver:
    """What the engine tells telemetry; the default ignores everything. Engine's thread."""

    def stepped(self, variant: str, kind: StepKind, seconds: float, load: VariantLoad) -> None:
        """One step ran; ``seconds`` of engine time."""

    def drafted(self, variant: str, count: int, accepted: int) -> None:
        """The step checked so many guessed tokens, and so many were right."""

    def loaded(self, variant: str, load: VariantLoad) -> None:
        """The gauges changed without a step."""

    def failed(self, variant: str, error: BaseException, **context: Any) -> None:
        """A step failed, or a session could not be loaded again; the requests are ended.

        Without a variant the engine itself failed, and its thread ends.
        """


Lost = Callable[[str, str], None]
"""Takes a variant that the engine can serve no longer, and why. Called on the engine's thread."""
