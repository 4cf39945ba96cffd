"""When requests come: a Poisson process, or as many users as were asked for."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from server.bench import arrivals
from server.bench.arrivals import Plan, moments, send_all

OPEN = Plan(rate=25.0, concurrency=1, seconds=None, requests=20_000, seed=3)


def judge_poisson(due: Sequence[float], rate: float) -> None:
    """Times between requests are exponential, and counts in a second vary as much as they are."""
    gaps = np.diff(due, prepend=0.0)
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.03)
    assert gaps.var() == pytest.approx(1 / rate**2, rel=0.06)
    assert stats.kstest(gaps, stats.expon(scale=1 / rate).cdf).pvalue > 0.01
    # No gap knows of the one before.
    assert abs(stats.spearmanr(gaps[:-1], gaps[1:]).statistic) < 0.03
    counts = np.bincount(np.floor(due).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.15)


def test_requests_of_an_open_loop_are_a_poisson_process() -> None:
    """Against the exponential distribution of scipy."""
    judge_poisson([*moments(OPEN)], 25.0)


@pytest.mark.parametrize("gaps", ["even", "uniform"])
def test_other_arrivals_are_told_apart(gaps: str) -> None:
    """The same rate at even or merely irregular distances does not pass."""
    rng = np.random.default_rng(0)
    drawn = np.full(20_000, 0.04) if gaps == "even" else rng.uniform(0, 0.08, 20_000)
    with pytest.raises(AssertionError):
        judge_poisson(np.cumsum(drawn).tolist(), 25.0)


def test_the_seed_decides_and_either_bound_ends_it() -> None:
    """Time or number, whichever comes first."""
    assert [*moments(OPEN)] == [*moments(OPEN)] != [*moments(replace(OPEN, seed=4))]
    by_time = [*moments(replace(OPEN, requests=None, seconds=10.0))]
    assert by_time == [due for due in moments(OPEN) if due <= 10.0]
    assert len([*moments(replace(OPEN, requests=5, seconds=10.0))]) == 5


@pytest.mark.parametrize("users", [1, 7])
async def test_a_closed_loop_keeps_exactly_its_users_in_flight(users: int) -> None:
    """Whenever one request ends, in whatever order, one more is sent, until there are no more."""
    in_flight: dict[int, asyncio.Event] = {}

    async def send(number: int, _: float) -> float:
        in_flight[number] = asyncio.Event()
        await in_flight[number].wait()
        del in_flight[number]
        return 0.0

    sending = asyncio.create_task(send_all(Plan(None, users, None, 50), send))
    for ended in range(50):
        await _settle()
        assert len(in_flight) == min(users, 50 - ended)
        in_flight[sorted(in_flight)[ended % len(in_flight)]].set()
    await asyncio.wait_for(sending, 30)


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    """The twin of the closed loop: who is slow only gathers more requests."""
    release = asyncio.Event()
    numbers: list[int] = []

    async def send(number: int, _: float) -> float:
        numbers.append(number)
        if number == 29:
            release.set()
        await release.wait()
        return 0.0

    await asyncio.wait_for(send_all(replace(OPEN, rate=2000.0, requests=30), send), 30)
    assert numbers == list(range(30))


async def test_time_ends_a_closed_loop() -> None:
    """No request begins afterwards, also where there is no limit to their number."""
    dues: list[float] = []

    async def send(_: int, due_s: float) -> float:
        dues.append(due_s)
        await asyncio.sleep(0.005)
        return 0.0

    begun_s = time.monotonic()
    await send_all(Plan(None, 3, 0.1, None), send)
    assert len(dues) > 3
    assert max(dues) - begun_s <= 0.1 + (time.monotonic() - begun_s) / 2


async def test_a_user_who_was_sent_away_stays_away() -> None:
    """Until the moment that was told, or the end of the run."""
    dues: list[float] = []

    async def send(_: int, due_s: float) -> float:
        dues.append(due_s)
        return 0.05

    await send_all(Plan(None, 1, None, 4), send)
    assert min(later - earlier for earlier, later in itertools.pairwise(dues)) >= 0.05
    dues.clear()

    async def sent_away_for_long(_: int, due_s: float) -> float:
        dues.append(due_s)
        return 1e6

    await asyncio.wait_for(send_all(Plan(None, 2, 0.05, None), sent_away_for_long), 30)
    assert len(dues) == 2


async def test_where_no_more_fit_requests_wait_but_stay_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full machine delays sending, and never moves when a request was due."""
    monkeypatch.setattr(arrivals, "_MOST_AT_A_TIME", 2)
    plan = replace(OPEN, rate=1000.0, requests=12)
    running, dues = 0, list[float]()

    async def send(_: int, due_s: float) -> float:
        nonlocal running
        running += 1
        assert running <= 2
        dues.append(due_s)
        await asyncio.sleep(0.01)
        running -= 1
        return 0.0

    await send_all(plan, send)
    assert np.diff(dues) == pytest.approx(np.diff([*moments(plan)]))


@pytest.mark.parametrize("rate", [None, 1000.0])
async def test_a_fault_of_the_generator_ends_the_run(rate: float | None) -> None:
    """It is not taken for an answer."""

    async def send(number: int, _: float) -> float:
        if number == 3:
            raise ZeroDivisionError
        return 0.0

    with pytest.raises(ExceptionGroup) as raised:
        await send_all(Plan(rate, 2, None, 10), send)
    assert raised.group_contains(ZeroDivisionError)
