"""Which variant a request without a name goes to."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.routing import choose

WEIGHTS = {"baseline": 0.7, "int8": 0.2, "int4": 0.1}


def never() -> float:
    raise AssertionError("a key leaves nothing to chance")


@given(key=st.text(min_size=1))
def test_a_key_stays_with_its_variant(key: str) -> None:
    """The same key gets the same variant, whatever the order and scale of the weights."""
    chosen = choose(WEIGHTS, key, never)
    shuffled = dict(reversed([(name, weight * 10) for name, weight in WEIGHTS.items()]))
    assert chosen == choose(shuffled, key, never)


def test_keys_and_chance_follow_the_weights() -> None:
    """Shares are the weights, within four standard deviations."""
    count = 10_000
    draw = random.Random(7).random  # noqa: S311 - a script, no secret
    by_key = Counter(choose(WEIGHTS, f"user-{number}", never) for number in range(count))
    by_chance = Counter(choose(WEIGHTS, "", draw) for _ in range(count))
    for name, weight in WEIGHTS.items():
        deviation = (count * weight * (1 - weight)) ** 0.5
        assert abs(by_key[name] - count * weight) < 4 * deviation
        assert abs(by_chance[name] - count * weight) < 4 * deviation


def test_only_the_keys_of_a_missing_variant_move() -> None:
    """While one variant is away, the others keep their keys."""
    keys = [f"user-{number}" for number in range(500)]
    rest = {name: weight for name, weight in WEIGHTS.items() if name != "int8"}
    moved = {key for key in keys if choose(WEIGHTS, key, never) != choose(rest, key, never)}
    assert {key for key in keys if choose(WEIGHTS, key, never) == "int8"} == moved


def test_the_choice_is_the_same_in_every_process() -> None:
    """Fixed examples: a change here would move everybody's keys."""
    keys = ["a", "b", "c", "user-1", "user-2", "user-3"]
    even = {"x": 1.0, "y": 1.0}
    assert [choose(even, key, never) for key in keys] == ["x", "x", "x", "y", "y", "x"]


def test_weightless_variants_are_never_chosen() -> None:
    """Weight 0 is out, and nothing to choose from is None."""
    assert choose({"x": 0.0, "y": 0.1}, "key", never) == "y"
    assert choose({"x": 0.0}, "key", never) is None
    assert choose({}, "", lambda: 0.0) is None
