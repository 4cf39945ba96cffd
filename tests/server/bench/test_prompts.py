"""Prompts: as long as asked, and none begins as another."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bench.prompts import Prompts

TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]


def draw(number: int, length: int = 12, shared: int = 0, seed: int = 0) -> list[int]:
    return Prompts(TEXT, seed).draw(number, length, shared, random.Random(f"{seed} {number}"))  # noqa: S311 - no secret


def judge_beginnings(prompts: Sequence[Sequence[int]]) -> None:
    """No two share more than two tokens, and neighbours not even one."""
    assert len({tuple(prompt[:3]) for prompt in prompts}) == len(prompts)
    assert all(one[0] != other[0] for one, other in itertools.pairwise(prompts))


def test_no_prompt_begins_as_another() -> None:
    """Over as many requests as the cube of the distinct tokens, a warm-up's included."""
    judge_beginnings([draw(number) for number in range(-50, 600)])


def test_windows_of_a_text_alone_begin_alike() -> None:
    """The twin: a text has fewer places than a run has requests."""
    rng = random.Random(0)  # noqa: S311 - no secret
    with pytest.raises(AssertionError):
        judge_beginnings([TEXT[rng.randrange(12) :] for _ in range(650)])


@given(
    number=st.integers(-1000, 10**9),
    length=st.integers(1, 40),
    shared=st.integers(0, 40),
    seed=st.integers(0, 2**63),
)
def test_lengths_are_exact_and_tokens_are_the_text_s(
    number: int, length: int, shared: int, seed: int
) -> None:
    """What is shared stands in front and is nobody's own."""
    prompt = draw(number, length, shared, seed)
    assert len(prompt) == length + shared
    assert prompt[:shared] == (TEXT * 3)[:shared]
    assert set(prompt) <= set(TEXT)
    assert prompt == draw(number, length, shared, seed)


def test_what_is_shared_is_shared_and_the_rest_is_not() -> None:
    """Asked for, prompts begin alike up to there."""
    prompts = [draw(number, shared=5) for number in range(300)]
    assert len({tuple(prompt[:5]) for prompt in prompts}) == 1
    judge_beginnings([prompt[5:] for prompt in prompts])


def test_another_seed_gives_other_prompts() -> None:
    """Or a second run would be answered from what the first left in the server's cache."""
    first, second = ([draw(number, seed=seed) for number in range(16)] for seed in (1, 2))
    assert not {tuple(prompt[:3]) for prompt in first} & {tuple(prompt[:3]) for prompt in second}


def test_a_text_of_one_token_is_enough() -> None:
    """Nothing can be unlike then, and nothing breaks."""
    assert Prompts([7], 0).draw(5, 4, 1, random.Random(0)) == [7] * 5  # noqa: S311 - no secret
