"""The Pareto front against Optuna's own, and few points for many."""

from __future__ import annotations

import itertools

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.search.front import dominates, front, spread

values = st.integers(0, 4).map(float)  # few, so that equal coordinates are common
points = st.lists(st.tuples(values, values, values), min_size=1, max_size=12)


@given(points=points)
def test_the_front_is_what_optuna_finds(points: list[tuple[float, ...]]) -> None:
    """A computation of somebody else's, over trials with the same values."""
    study = optuna.create_study(directions=["minimize"] * 3)
    study.add_trials([optuna.trial.create_trial(values=list(one)) for one in points])
    expected = {f"p{trial.number}" for trial in study.best_trials}
    assert set(front({f"p{index}": one for index, one in enumerate(points)})) == expected


@given(points=points)
def test_whatever_is_not_on_the_front_is_dominated_by_something_on_it(
    points: list[tuple[float, ...]],
) -> None:
    """And nothing on it is dominated at all."""
    named = {str(index): one for index, one in enumerate(points)}
    kept = front(named)
    for name, one in named.items():
        beaten = any(dominates(named[other], one) for other in kept)
        assert beaten == (name not in kept)


def test_few_points_stand_for_many() -> None:
    """The best of every coordinate first, then what is farthest from them."""
    line = {f"p{x}": (float(x), float(10 - x)) for x in range(11)}
    assert spread(line, 2) == ["p0", "p10"]
    assert spread(line, 3) == ["p0", "p5", "p10"]
    assert spread(line, 11) == list(line)
    assert spread({}, 3) == []


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_no_more_are_kept_than_asked_for(count: int) -> None:
    """Whatever the number of coordinates."""
    cube = {str(one): one for one in itertools.product((0.0, 1.0), repeat=4)}
    assert len(spread(cube, count)) == count
