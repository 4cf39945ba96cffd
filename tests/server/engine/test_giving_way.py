"""A busy engine leaves moments to work in the background, and to nobody when there is none."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from server.engine.giving_way import EVERY_S, FOR_S, GivingWay
from server.engine.messages import Finished, GiveWay


def pauses(*, workers: int, busy_s: float, rests_every_s: float | None = None) -> list[float]:
    """When it pauses while steps of 10 ms follow each other."""
    now, paused, slept = 0.0, [], []

    def pause(seconds: float) -> None:
        slept.append(seconds)

    giving_way = GivingWay(lambda: now, pause)
    for _ in range(workers + 1):
        giving_way.worker(begins=True)
    giving_way.worker(begins=False)
    rested = 0.0
    while now < busy_s:
        now += 0.01
        giving_way.stepped()
        if slept:
            paused.append(round(now, 2))
            assert slept.pop() == FOR_S
        if rests_every_s is not None and now - rested >= rests_every_s:
            giving_way.rested()
            rested = now
    return paused


def test_an_engine_that_never_rests_pauses_now_and_then() -> None:
    """About a twentieth of the time, in few moments."""
    found = pauses(workers=1, busy_s=4.05)
    assert found == pauses(workers=2, busy_s=4.05)
    assert len(found) == pytest.approx(4.05 / EVERY_S, abs=1)
    assert 0.04 < FOR_S / (EVERY_S + FOR_S) < 0.06


def test_it_does_not_where_nobody_wants_it_or_it_rests_anyway() -> None:
    """Its own work comes first."""
    assert pauses(workers=0, busy_s=4.0) == []
    assert pauses(workers=1, busy_s=4.0, rests_every_s=EVERY_S / 2) == []


def test_the_engine_is_told_and_pauses_between_steps(session: Any, make_harness: Any) -> None:
    """And goes on afterwards: every answer is whole."""
    paused = threading.Event()
    now = iter(range(1, 10_000_000))
    harness = make_harness(
        clock=lambda: float(next(now)), pause=lambda _: paused.set(), hang_floor_s=1e9
    )
    harness.engine.post(GiveWay(begins=True))
    harness.attach(session)
    harness.submit("r", [1, 2, 3])
    harness.engine.start()
    try:
        assert isinstance(harness.final("r"), Finished)
        assert paused.wait(5)
        assert len(harness.tokens("r")) == 8
    finally:
        harness.engine.stop()
