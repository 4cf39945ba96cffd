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


@pytest.mark.parametrize(("weight", "step_s"), [(0.2, 0.02), (0.2, 0.1), (0.2, 0.4), (1.8, 0.02)])
def test_moments_of_idleness_change_no_share(weight: float, step_s: float) -> None:
    """A client of one long step after the other gets its weight's share, not half and more."""
    turns = Turns()
    turns.add("stream", 1.8)
    turns.add("client", weight)
    used = {"stream": 0.0, "client": 0.0}
    now_s = asks_again_s = 0.0
    while now_s < 120:
        busy = ["stream", "client"] if now_s >= asks_again_s else ["stream"]
        name = turns.next(busy)
        assert name is not None
        seconds = step_s if name == "client" else 0.005
        turns.charge(name, seconds)
        used[name] += seconds
        now_s += seconds
        if name == "client":
            asks_again_s = now_s + 0.001
    assert used["client"] / now_s == pytest.approx(weight / (weight + 1.8), rel=0.05)


def test_debt_is_paid_off_while_others_run() -> None:
    """An idle lane earns its share of what others use, so that a pause is not held against it."""
    turns = Turns()
    turns.add("a", 1.0)
    turns.add("b", 1.0)
    while turns.next(["a", "b"]) != "b":
        turns.charge("a", 0.05)
    turns.charge("b", 1.0)
    for _ in range(20):
        assert turns.next(["a"]) == "a"
        turns.charge("a", 0.05)
    waited_s = 0.0
    while turns.next(["a", "b"]) == "a":
        turns.charge("a", 0.05)
        waited_s += 0.05
    assert waited_s <= 0.1


@pytest.mark.parametrize("pause", [True, False])
def test_time_that_nobody_else_wanted_is_not_owed(*, pause: bool) -> None:
    """Long steps of a lone lane cost it nothing later: one step at most, and none after a pause."""
    turns = Turns()
    turns.add("a", 1.0)
    turns.add("b", 1.0)
    for _ in range(100):
        assert turns.next(["b"]) == "b"
        turns.charge("b", 1.0)
    if pause:
        assert turns.next([]) is None
    waited_s = 0.0
    while turns.next(["a", "b"]) == "a":
        turns.charge("a", 0.05)
        waited_s += 0.05
    assert waited_s <= (0.1 if pause else 1.1)
