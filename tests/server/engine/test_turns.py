"""Whose turn it is, over simulated seconds."""

from __future__ import annotations

import pytest

from artifacts.errors import BugError
from server.engine.turns import Turns


@pytest.mark.parametrize("steps_s", [{"a": 0.01, "b": 0.01}, {"a": 0.2, "b": 0.004}])
def test_seconds_follow_the_weights(steps_s: dict[str, float]) -> None:
    """Engine seconds, not steps, are shared 4 to 1, also when steps take very different times."""
    turns = Turns()
    turns.add("a", 0.8)
    turns.add("b", 0.2)
    used = {"a": 0.0, "b": 0.0}
    while sum(used.values()) < 60:
        name = turns.next(["a", "b"])
        assert name is not None
        turns.charge(name, steps_s[name])
        used[name] += steps_s[name]
    assert used["a"] / 60 == pytest.approx(0.8, abs=0.02)


def test_idle_lanes_save_no_credit() -> None:
    """Who was idle for long gets its share from now on, not the past's."""
    turns = Turns()
    turns.add("a", 1.0)
    turns.add("b", 1.0)
    for _ in range(1000):
        assert turns.next(["a"]) == "a"
        turns.charge("a", 0.05)
    used = {"a": 0, "b": 0}
    for _ in range(200):
        name = turns.next(["a", "b"])
        assert name is not None
        turns.charge(name, 0.05)
        used[name] += 1
    assert abs(used["a"] - used["b"]) <= 2


def test_nobody_busy_means_nobody_next() -> None:
    """Without work there is no turn."""
    turns = Turns()
    turns.add("a", 1.0)
    assert turns.next([]) is None
    turns.remove("a")
    turns.charge("a", 1.0)


def test_weightless_lane_is_a_bug() -> None:
    """A lane without weight would wait for ever."""
    with pytest.raises(BugError, match="never get a turn"):
        Turns().add("a", 0.0)
