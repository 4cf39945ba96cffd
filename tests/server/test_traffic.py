"""Traffic and its history: what a change leaves, and what it can be taken back to."""

from __future__ import annotations

import pytest

from server.traffic import History, Shadow, Traffic

SHADOW = Shadow("b", 0.5)


def test_promoting_ends_the_shadow_of_who_is_promoted() -> None:
    """It has nobody left to be compared with; a shadow of another goes on."""
    traffic = Traffic({"a": 1.0}, SHADOW)
    assert traffic.promoted("b") == Traffic({"b": 1.0}, None)
    assert traffic.promoted("a") == Traffic({"a": 1.0}, SHADOW)


@pytest.mark.parametrize(
    ("weights", "takers"), [({}, {"a"}), ({"a": 0.0, "b": 2.0}, {"b"}), ({"a": 1, "b": 1}, {*"ab"})]
)
def test_without_weights_the_default_takes_all(weights: dict[str, float], takers: set[str]) -> None:
    """And a weight of 0 takes nothing."""
    assert Traffic(weights).takers("a") == takers


def everybody(_: str) -> bool:
    return True


def test_changes_are_taken_back_one_by_one() -> None:
    """Each rollback goes one further, and there is an end to it."""
    history = History(Traffic())
    for name in "bcd":
        history.change(Traffic({name: 1.0}))
    seen = []
    while history.back(everybody, "a"):
        seen.append(dict(history.now.weights))
    assert seen == [{"c": 1.0}, {"b": 1.0}, {}]
    assert not history.back(everybody, "a")
    assert history.now == Traffic()


def test_what_was_taken_back_is_not_come_back_to() -> None:
    """A change after a rollback remembers what the rollback led to."""
    history = History(Traffic({"a": 1.0}))
    history.change(Traffic({"b": 1.0}))
    assert history.back(everybody, "a")
    history.change(Traffic({"c": 1.0}))
    assert history.back(everybody, "a")
    assert history.now == Traffic({"a": 1.0})


def test_a_variant_that_is_gone_is_never_led_back_to() -> None:
    """Not by its weight, not as the shadow, and not as the default that took all.

    Nor is a shadow that is left alone with itself kept.
    """
    history = History(Traffic())
    history.change(Traffic({"a": 0.5, "b": 0.5}, SHADOW))
    history.change(Traffic({"a": 1.0}))
    history.change(Traffic({"b": 0.5, "c": 0.5}, Shadow("a", 1.0)))
    history.change(Traffic({"c": 1.0}))
    history.forget("a", "a")
    seen = []
    while history.back(everybody, "a"):
        seen.append((dict(history.now.weights), history.now.shadow))
    assert seen == [({"b": 0.5, "c": 0.5}, None), ({"b": 0.5}, None)]


def test_who_does_not_serve_now_is_left_out_and_nothing_is_lost_meanwhile() -> None:
    """A variant that failed may be loaded again, and then be gone back to."""
    history = History(Traffic({"a": 1.0}))
    history.change(Traffic({"a": 0.5, "b": 0.5}))
    history.change(Traffic({"c": 1.0}))
    assert not history.back(lambda name: name == "c", "a")
    assert history.now == Traffic({"c": 1.0})
    assert history.back(lambda name: name != "b", "a")
    assert history.now == Traffic({"a": 0.5})


def test_a_shadow_of_others_is_kept() -> None:
    """Who takes a part itself can still be judged on the rest."""
    traffic = Traffic({"a": 1.0, "b": 1.0, "c": 1.0}, SHADOW)
    assert traffic.among(lambda name: name != "c", "a") == Traffic({"a": 1.0, "b": 1.0}, SHADOW)
    assert traffic.among(lambda name: name != "b", "a") == Traffic({"a": 1.0, "c": 1.0})


def test_history_is_bounded() -> None:
    """Who changes traffic every minute does not fill the memory."""
    history = History(Traffic())
    for number in range(100):
        history.change(Traffic({f"v{number}": 1.0}))
    count = 0
    while history.back(everybody, "a"):
        count += 1
    assert count == 32
