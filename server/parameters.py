"""What a caller may ask of sampling, and how unset fields are filled in.

Owns the bounds of every number (``BOUNDS``; docs/parameters.md shows the same table) and the
order of defaults: the caller, the model's generation config, ours. Knows nothing of gRPC, of text
or of how sampling is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_float
from dataclasses import dataclass, field

from artifacts.manifest import GenerationDefaults
from server.engine.messages import Sampling
from server.errors import InvalidRequestError
from server.limits import RequestLimits


@dataclass(frozen=True, slots=True)
class SamplingCall:
    """Sampling as the caller wrote it; None is unset.

    Sequences and the mapping may be views of the caller's message: they are bounded first and
    copied after.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool | None = None
    logprobs: int | None = None
    typical_p: float | None = None
    allowed_token_ids: Sequence[int] = ()
    bad_words: Sequence[str] = ()
    n: int | None = None
    max_time_seconds: float | None = None
    skip_special_tokens: bool | None = None
    include_stop: bool | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """The values that one number may take: ``low`` (itself excluded if ``above``) to ``high``."""

    low: float
    high: float
    above: bool = False
    or_zero: bool = False

    def __str__(self) -> str:
        """The interval in words and brackets."""
        interval = f"{'(' if self.above else '['}{self.low}, {self.high}]"
        return f"0 or a value in {interval}" if self.or_zero else f"a value in {interval}"

    def problem(self, value: float) -> str | None:
        """What is wrong with a value, None if nothing is."""
        if not math.isfinite(value):
            return "is not a number" if math.isnan(value) else "is not finite"
        if self.or_zero and value == 0:
            return None
        low, high = self.low, self.high
        if isinstance(value, float):
            # Messages carry float32, whose 0.01 is a little less than 0.01: both are compared so.
            low, high, value = (c_float(number).value for number in (low, high, value))
        if value > high:
            return f"is above {self.high}"
        if value < low:
            return f"is below {self.low}"
        return f"is not above {self.low}" if self.above and value == self.low else None


BOUNDS: Mapping[str, Bound] = {
    # Below 0.001 the division overflows float32, and nothing but the best token is left anyway.
    "temperature": Bound(0.001, 100, or_zero=True),
    "top_k": Bound(0, 1_000_000),
    "top_p": Bound(0, 1, above=True),
    "min_p": Bound(0, 1),
    "typical_p": Bound(0, 1, above=True),
    "repetition_penalty": Bound(0.01, 100),
    "presence_penalty": Bound(-2, 2),
    "frequency_penalty": Bound(-2, 2),
    "seed": Bound(0, 2**64 - 1),
    "max_time_seconds": Bound(0, 86_400, above=True),
}
PRIORITY = Bound(-1000, 1000)
LOGIT_BIAS = Bound(-100, 100)


def check_text(name: str, text: str, most_bytes: int, remedy: str) -> None:
    """Refuse a text that is longer than ``most_bytes`` in UTF-8."""
    # A character is one to four bytes: most texts are judged without encoding them.
    if len(text) * 4 > most_bytes and (size := len(text.encode())) > most_bytes:
        raise InvalidRequestError(name, f"has {size} bytes, and the limit is {most_bytes}", remedy)


def check_token_ids(name: str, token_ids: Sequence[int], vocab_size: int, most: int) -> None:
    """Refuse more ids than ``most`` and ids that are none of the vocabulary's."""
    if len(token_ids) > most:
        raise InvalidRequestError(
            name, f"has {len(token_ids)} ids, and the limit is {most}", "send fewer"
        )
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise InvalidRequestError(
            name,
            f"{wrong} is not in the vocabulary",
            f"use ids from 0 to {vocab_size - 1}, as Tokenize gives them",
        )


def check_sampling(call: SamplingCall, limits: RequestLimits, vocab_size: int) -> None:
    """Refuse whatever can be refused before the length of the prompt is known.

    Raises:
        InvalidRequestError: The first field that is wrong.
    """
    for name, bound in BOUNDS.items():
        _check_number(name, getattr(call, name), bound)
    most = limits.max_completion_tokens
    _check_number("max_tokens", call.max_tokens, Bound(0, most))
    _check_number("min_tokens", call.min_tokens, Bound(0, most))
    _check_number("logprobs", call.logprobs, Bound(0, limits.max_logprobs))
    _check_number("n", call.n, Bound(1, limits.max_choices))
    _check_texts("stop", call.stop, limits.max_stops, limits.max_stop_bytes)
    _check_texts("bad_words", call.bad_words, limits.max_bad_words, limits.max_bad_word_bytes)
    check_token_ids(
        "sampling.stop_token_ids", call.stop_token_ids, vocab_size, limits.max_stop_token_ids
    )
    check_token_ids(
        "sampling.allowed_token_ids",
        call.allowed_token_ids,
        vocab_size,
        limits.max_allowed_token_ids,
    )
    if len(call.logit_bias) > limits.max_logit_bias:
        raise InvalidRequestError(
            "sampling.logit_bias",
            f"has {len(call.logit_bias)} entries, and the limit is {limits.max_logit_bias}",
            "send fewer",
        )
    biased = tuple(call.logit_bias)
    check_token_ids("sampling.logit_bias", biased, vocab_size, limits.max_logit_bias)
    for token_id in biased:
        _check_number(f"logit_bias[{token_id}]", call.logit_bias[token_id], LOGIT_BIAS)


def resolve_sampling(
    call: SamplingCall,
    defaults: GenerationDefaults,
    *,
    prompt_tokens: int,
    room: int,
    vocab_size: int,
    limits: RequestLimits,
    draw_seed: Callable[[], int],
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> Sampling:
    """Fill in what a checked call leaves unset.

    Args:
        call: What the caller asked for; ``check_sampling`` has passed it.
        defaults: The model's own generation config.
        prompt_tokens: Length of the prompt, for the sentence when there is no room.
        room: Tokens that fit behind the prompt; at least 1.
        vocab_size: Of the model; a ``top_k`` as large is none.
        limits: Where the default length comes from.
        draw_seed: Makes a seed for a caller who named none.
        bad_words: As token ids.

    Raises:
        InvalidRequestError: ``max_tokens`` or ``min_tokens`` do not fit.
    """
    max_tokens = call.max_tokens
    if max_tokens is None:
        max_tokens = min(room, limits.default_completion_tokens)
    elif max_tokens > room:
        raise InvalidRequestError(
            "sampling.max_tokens",
            f"{max_tokens} does not fit: {room} tokens are left behind a prompt of {prompt_tokens}",
            f"use at most {room}, shorten the prompt, or leave it unset for what fits",
        )
    min_tokens = call.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequestError(
            "sampling.min_tokens",
            f"{min_tokens} is above max_tokens ({max_tokens})",
            f"use at most {max_tokens} or raise max_tokens",
        )
    model_temperature = 0.0 if defaults.do_sample is False else defaults.temperature
    top_k = int(_first(call.top_k, _valid("top_k", defaults.top_k), 0))
    return Sampling(
        max_tokens=max_tokens,
        temperature=_first(call.temperature, _valid("temperature", model_temperature), 1.0),
        top_k=top_k if top_k < vocab_size else 0,
        typical_p=_first(call.typical_p, None, 1.0),
        top_p=_first(call.top_p, _valid("top_p", defaults.top_p), 1.0),
        min_p=_first(call.min_p, _valid("min_p", defaults.min_p), 0.0),
        repetition_penalty=_first(
            call.repetition_penalty,
            _valid("repetition_penalty", defaults.repetition_penalty),
            1.0,
        ),
        presence_penalty=_first(call.presence_penalty, None, 0.0),
        frequency_penalty=_first(call.frequency_penalty, None, 0.0),
        logit_bias=tuple(sorted(call.logit_bias.items())),
        allowed_token_ids=tuple(dict.fromkeys(call.allowed_token_ids)),
        bad_words=bad_words,
        seed=draw_seed() if call.seed is None else call.seed,
        min_tokens=min_tokens,
        # A model may name ends that it cannot say; to the engine they would be rows that are not.
        eos_token_ids=frozenset(
            token_id for token_id in defaults.eos_token_ids if 0 <= token_id < vocab_size
        ),
        stop_token_ids=frozenset(call.stop_token_ids),
        ignore_eos=bool(call.ignore_eos),
        logprobs=call.logprobs,
    )


def _first(*values: float | None) -> float:
    """The first value that is set; the last one always is."""
    return next(value for value in values if value is not None)


def _valid(name: str, value: float | None) -> float | None:
    """A model's default, unless it is outside what a caller might ask for (models ship those)."""
    return None if value is None or BOUNDS[name].problem(value) else value


def check_number(field_name: str, value: float | None, bound: Bound) -> None:
    """Refuse a number out of its bounds; None is none."""
    if value is not None and (problem := bound.problem(value)):
        # Callers write float32: six digits show what they wrote, and integers stay whole.
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        raise InvalidRequestError(field_name, f"{shown} {problem}", f"use {bound}")


def _check_number(name: str, value: float | None, bound: Bound) -> None:
    check_number(f"sampling.{name}", value, bound)


def _check_texts(name: str, texts: Sequence[str], most: int, most_bytes: int) -> None:
    if len(texts) > most:
        problem = f"has {len(texts)} strings, and the limit is {most}"
        raise InvalidRequestError(f"sampling.{name}", problem, "send fewer")
    for index, text in enumerate(texts):
        each = f"sampling.{name}[{index}]"
        if not text:
            raise InvalidRequestError(each, "is empty", "leave it out")
        check_text(each, text, most_bytes, "shorten it")
