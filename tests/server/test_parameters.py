"""What callers may ask of sampling, and what unset fields become."""

from __future__ import annotations

import math
from ctypes import c_float
from pathlib import Path
from typing import Any

import pytest

from artifacts.manifest import GenerationDefaults
from server.engine.messages import Sampling
from server.errors import InvalidRequestError
from server.limits import RequestLimits
from server.parameters import BOUNDS, SamplingCall, check_sampling, resolve_sampling

DOCS = Path(__file__).parents[2] / "docs" / "parameters.md"
LIMITS = RequestLimits()
VOCABULARY = 100

FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "max_time_seconds",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
OUTSIDE = [
    ("temperature", -0.1, "is below 0.001"),
    ("temperature", 0.0001, "is below 0.001"),
    ("temperature", 101.0, "is above 100"),
    ("top_k", 1_000_001, "is above 1000000"),
    ("top_k", -1, "is below 0"),
    ("top_p", 0.0, "is not above 0"),
    ("top_p", 1.5, "is above 1"),
    ("min_p", -0.5, "is below 0"),
    ("min_p", 1.01, "is above 1"),
    ("repetition_penalty", 0.0, "is below 0.01"),
    ("repetition_penalty", 1e30, "is above 100"),
    ("presence_penalty", -2.5, "is below -2"),
    ("frequency_penalty", 2.5, "is above 2"),
    ("seed", 2**64, "is above 18446744073709551615"),
    ("typical_p", 0.0, "is not above 0"),
    ("typical_p", 1.5, "is above 1"),
    ("max_time_seconds", 0.0, "is not above 0"),
    ("max_time_seconds", 1e6, "is above 86400"),
    ("n", 0, "is below 1"),
    ("n", 9, "is above 8"),
    ("max_tokens", LIMITS.max_completion_tokens + 1, "is above 131072"),
    ("min_tokens", LIMITS.max_completion_tokens + 1, "is above 131072"),
    ("logprobs", 21, "is above 20"),
    *((name, math.nan, "is not a number") for name in FLOATS),
    *((name, math.inf, "is not finite") for name in FLOATS),
    *((name, -math.inf, "is not finite") for name in FLOATS),
]
INSIDE = {
    "temperature": (0, 0.001, 100.0),
    "top_k": (0, 1_000_000),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "seed": (0, 2**64 - 1),
    "typical_p": (1e-6, 1.0),
    "max_time_seconds": (0.001, 86_400.0),
    "n": (1, 8),
    "allowed_token_ids": ([], [0, 99], [1] * 16_384),
    "bad_words": ([], ["x" * 256], ["x"] * 64),
    "skip_special_tokens": (True, False),
    "include_stop": (True, False),
    "max_tokens": (0, LIMITS.max_completion_tokens),
    "min_tokens": (0, LIMITS.max_completion_tokens),
    "logprobs": (0, 20),
    "logit_bias": ({}, {0: -100.0, 99: 100.0}),
    "stop": ([], ["x" * 256], ["x"] * 16),
    "stop_token_ids": ([], [0, 99], [1] * 64),
    "ignore_eos": (True, False),
}


def resolve(
    call: SamplingCall, defaults: GenerationDefaults | None = None, **more: Any
) -> Sampling:
    arguments: dict[str, Any] = {
        "prompt_tokens": 10,
        "room": 2000,
        "vocab_size": VOCABULARY,
        "limits": LIMITS,
        "draw_seed": lambda: 123,
    }
    return resolve_sampling(call, defaults or GenerationDefaults(), **(arguments | more))


@pytest.mark.parametrize(("name", "value", "problem"), OUTSIDE)
def test_a_number_outside_its_bounds_is_refused_by_name(
    name: str, value: float, problem: str
) -> None:
    """The message names the field, the problem and the remedy."""
    with pytest.raises(InvalidRequestError) as caught:
        check_sampling(SamplingCall(**{name: value}), LIMITS, VOCABULARY)
    assert f"sampling.{name}" == caught.value.field
    assert str(caught.value).startswith(f"sampling.{name}: ")
    assert f"{problem}; use " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stop", ["a"] * 17, "sampling.stop: has 17 strings, and the limit is 16; send fewer"),
        ("stop", ["a", ""], "sampling.stop[1]: is empty; leave it out"),
        ("stop", ["é" * 129], "sampling.stop[0]: has 258 bytes, and the limit is 256; shorten it"),
        (
            "stop_token_ids",
            [100],
            (
                "sampling.stop_token_ids: 100 is not in the vocabulary; use ids from 0 to 99, as "
                "Tokenize gives them"
            ),
        ),
        (
            "stop_token_ids",
            [1] * 65,
            "sampling.stop_token_ids: has 65 ids, and the limit is 64; send fewer",
        ),
        (
            "logit_bias",
            dict.fromkeys(range(1025), 0.0),
            "sampling.logit_bias: has 1025 entries, and the limit is 1024; send fewer",
        ),
        (
            "logit_bias",
            {101: 1.0},
            (
                "sampling.logit_bias: 101 is not in the vocabulary; use ids from 0 to 99, as "
                "Tokenize gives them"
            ),
        ),
        (
            "logit_bias",
            {7: math.nan},
            "sampling.logit_bias[7]: nan is not a number; use a value in [-100, 100]",
        ),
        (
            "logit_bias",
            {7: 100.5},
            "sampling.logit_bias[7]: 100.5 is above 100; use a value in [-100, 100]",
        ),
        ("top_p", 1.5, "sampling.top_p: 1.5 is above 1; use a value in (0, 1]"),
        (
            "temperature",
            -1.0,
            "sampling.temperature: -1 is below 0.001; use 0 or a value in [0.001, 100]",
        ),
    ],
)
def test_messages_say_what_to_do(name: str, value: Any, message: str) -> None:
    """The whole sentence, for each kind of fault."""
    with pytest.raises(InvalidRequestError) as caught:
        check_sampling(SamplingCall(**{name: value}), LIMITS, VOCABULARY)
    assert message == str(caught.value)


@pytest.mark.parametrize("name", INSIDE)
def test_values_on_the_bounds_are_taken(name: str) -> None:
    """The bounds themselves are allowed; so no test above passes because everything fails."""
    for value in INSIDE[name]:
        check_sampling(SamplingCall(**{name: value}), LIMITS, VOCABULARY)


@pytest.mark.parametrize("name", FLOATS)
def test_bounds_are_taken_as_float32_carries_them(name: str) -> None:
    """Messages hold float32, whose 0.01 is less than 0.01; what is clearly outside stays so."""
    bound = BOUNDS[name]
    for value in (bound.low, bound.high):
        carried = c_float(value).value
        if not bound.above or carried > bound.low:
            check_sampling(SamplingCall(**{name: carried}), LIMITS, VOCABULARY)
    for beyond in (bound.low - 1e-4 * abs(bound.low or 1), bound.high * 1.0001):
        with pytest.raises(InvalidRequestError):
            check_sampling(SamplingCall(**{name: beyond}), LIMITS, VOCABULARY)


def test_every_field_has_its_bounds_tested() -> None:
    """A new field must join the tables above."""
    fields = set(SamplingCall.__dataclass_fields__)
    assert fields == set(INSIDE)
    assert set(BOUNDS) <= {name for name, _, _ in OUTSIDE}


def test_unset_fields_get_our_defaults() -> None:
    """Without a generation config: temperature 1, everything else off, 1024 tokens."""
    assert Sampling(max_tokens=1024, seed=123) == resolve(SamplingCall())


def test_unset_fields_come_from_the_model_first() -> None:
    """The model's own config is used where the caller says nothing, and only there."""
    defaults = GenerationDefaults(
        eos_token_ids=(2, 3),
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.1,
    )
    model = Sampling(
        max_tokens=1024,
        temperature=0.6,
        top_k=20,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.1,
        seed=123,
        eos_token_ids=frozenset({2, 3}),
    )
    assert model == resolve(SamplingCall(), defaults)
    call = SamplingCall(
        temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0
    )
    neutral = Sampling(max_tokens=1024, temperature=0.0, seed=0, eos_token_ids=frozenset({2, 3}))
    assert neutral == resolve(call, defaults)


def test_a_model_that_does_not_sample_is_greedy_by_default() -> None:
    """do_sample: false means temperature 0, unless the caller wants another."""
    greedy = GenerationDefaults(do_sample=False, temperature=0.7)
    assert resolve(SamplingCall(), greedy).temperature == 0
    assert resolve(SamplingCall(temperature=0.5), greedy).temperature == 0.5
    assert resolve(SamplingCall(), replace_default(greedy, do_sample=None)).temperature == 0.7


def replace_default(defaults: GenerationDefaults, **changes: Any) -> GenerationDefaults:
    return defaults.model_copy(update=changes)


def test_a_models_nonsense_is_ignored() -> None:
    """Values that a caller could not send are not taken from the model either."""
    defaults = GenerationDefaults(temperature=-1.0, top_k=-1, top_p=0.0, min_p=math.nan)
    assert Sampling(max_tokens=1024, seed=123) == resolve(SamplingCall(), defaults)


def test_ends_that_the_model_cannot_say_are_left_out() -> None:
    """An id beyond the vocabulary would be an index beyond the logits, and fail all neighbours."""
    defaults = GenerationDefaults(eos_token_ids=(2, VOCABULARY, -1))
    assert resolve(SamplingCall(), defaults).eos_token_ids == {2}


def test_a_top_k_of_the_whole_vocabulary_is_none() -> None:
    """The sampler is spared a choice among everything."""
    assert resolve(SamplingCall(top_k=VOCABULARY)).top_k == 0
    assert resolve(SamplingCall(top_k=VOCABULARY - 1)).top_k == VOCABULARY - 1


def test_length_is_cut_to_what_fits_only_when_it_is_unset() -> None:
    """Unset: what fits. Set and too large: refused, with the number that fits."""
    assert resolve(SamplingCall(), room=7).max_tokens == 7
    assert resolve(SamplingCall(max_tokens=7), room=7).max_tokens == 7
    with pytest.raises(InvalidRequestError, match="use at most 7, shorten the prompt"):
        resolve(SamplingCall(max_tokens=8), room=7)
    with pytest.raises(InvalidRequestError, match=r"min_tokens: 8 is above max_tokens \(7\)"):
        resolve(SamplingCall(min_tokens=8), room=7)


def test_zero_logprobs_is_not_unset() -> None:
    """Logprobs 0 asks for the chosen token's own."""
    assert resolve(SamplingCall(logprobs=0)).logprobs == 0
    assert resolve(SamplingCall()).logprobs is None


def test_the_documented_table_is_the_code() -> None:
    """docs/parameters.md shows each field with its bounds."""
    rows = {
        cells[0].strip().strip("`"): cells
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert set(SamplingCall.__dataclass_fields__) <= set(rows)
    for name, bound in BOUNDS.items():
        assert str(bound).replace("a value in ", "") == rows[name][1], name
