"""Who comes first, who gives way, and whose time is over."""

from __future__ import annotations

import itertools
import time
from typing import Any

from server.engine.messages import (
    BACKGROUND,
    Finished,
    FinishReason,
    Generated,
    Scoring,
)


def _until_it_steps(session: Any) -> None:
    """Wait until the engine is in a step, so that what is sent now comes after it."""
    deadline_s = time.monotonic() + 10
    while not session.steps:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_lower_priorities_get_slots_first(harness: Any, make_session: Any) -> None:
    """With one slot, those that wait are served by priority, then in order of arrival."""
    session = make_session(slots=1)
    harness.attach(session)
    session.gate.clear()
    harness.submit("first", [1], max_tokens=1)
    _until_it_steps(session)
    for name, priority in (("late", 5), ("normal", 0), ("also normal", 0), ("urgent", -3)):
        harness.submit(name, [2], max_tokens=1, priority=priority)
    session.gate.set()
    names = ("first", "urgent", "normal", "also normal", "late")
    for name in names:
        harness.final(name)
    begun = [next(e for e in harness.events[n] if isinstance(e, Generated)) for n in names]
    assert [event.emitted_s for event in begun] == sorted(event.emitted_s for event in begun)


def test_background_gives_its_slot_up(harness: Any, make_session: Any) -> None:
    """Whoever waits for a slot gets that of a background request, which ends as cancelled."""
    session = make_session(slots=1)
    harness.attach(session, step_tokens=4)
    session.gate.clear()
    long = list(range(50))
    harness.submit("shadow", long, max_tokens=0, scoring=Scoring(first=1), priority=BACKGROUND)
    _until_it_steps(session)
    harness.submit("request", [1], max_tokens=3)
    session.gate.set()
    assert harness.final("request").usage.completion_tokens == 3
    assert harness.final("shadow").reason is FinishReason.CANCELLED
    assert harness.finals("shadow") == 1


def test_background_waits_for_a_free_slot(harness: Any, make_session: Any) -> None:
    """It never takes a slot from a request, and gets one in the end."""
    session = make_session(slots=1)
    harness.attach(session)
    session.gate.clear()
    harness.submit("request", [1], max_tokens=9)
    _until_it_steps(session)
    scoring = Scoring(first=1)
    harness.submit("shadow", [2, 3], max_tokens=0, scoring=scoring, priority=BACKGROUND)
    session.gate.set()
    assert harness.final("request").usage.completion_tokens == 9
    assert harness.final("shadow").reason is FinishReason.LENGTH


def test_background_has_steps_of_its_own(harness: Any, make_session: Any) -> None:
    """No step that somebody waits for is longer for it."""
    session = make_session()
    harness.attach(session, step_tokens=32)
    session.gate.clear()
    harness.submit("request", [1], max_tokens=60)
    _until_it_steps(session)
    scoring = Scoring(first=1)
    harness.submit("shadow", range(60), max_tokens=0, scoring=scoring, priority=BACKGROUND)
    session.gate.set()
    assert harness.final("request").usage.completion_tokens == 60
    assert harness.final("shadow").reason is FinishReason.LENGTH
    kinds = [{len(row.tokens) > 1 or row.logits == 0 for row in rows} for rows in session.steps]
    assert {True} in kinds
    assert {True, False} not in kinds


def test_background_gets_little_of_a_busy_engine(make_harness: Any, make_session: Any) -> None:
    """Another variant's stream goes on; each step takes as long as any other here."""
    ticks = itertools.count()
    harness = make_harness(clock=lambda: next(ticks) * 1e-3)
    serving, candidate = make_session(), make_session()
    order: list[str] = []
    for name, session in (("serving", serving), ("candidate", candidate)):
        harness.attach(session, name)
        step = session.step
        session.step = lambda rows, name=name, step=step: (order.append(name), step(rows))[1]
    harness.submit("request", [1], "serving", max_tokens=250)
    scoring = Scoring(first=1)
    for number in range(4):  # 16 steps of 16 tokens each
        prompt = [number] * 250
        name = f"shadow {number}"
        harness.submit(
            name, prompt, "candidate", max_tokens=0, scoring=scoring, priority=BACKGROUND
        )
    harness.engine.start()
    harness.final("request")
    beside = order[: len(order) - order[::-1].index("serving")]
    assert 0.02 < beside.count("candidate") / len(beside) < 0.1
    harness.engine.stop()


def test_time_ends_with_what_there_is(make_harness: Any, session: Any) -> None:
    """A request whose time is over ends well with its text so far, running or waiting."""
    now = [0.0]
    harness = make_harness(clock=lambda: now[0])
    harness.attach(session, budget=120)
    session.gate.clear()
    harness.engine.start()
    harness.submit("running", [1, 2], max_tokens=100, stop_s=5.0)
    _until_it_steps(session)
    harness.submit("waiting", [1, 2], max_tokens=100, stop_s=5.0)
    harness.submit("fine", [1, 2], max_tokens=3, stop_s=50.0)
    now[0] = 6.0
    session.gate.set()
    for name in ("running", "waiting"):
        final = harness.final(name)
        assert isinstance(final, Finished)
        assert final.reason is FinishReason.TIME
    assert len(harness.tokens("running")) == 1
    assert harness.tokens("waiting") == []
    assert harness.final("fine").reason is FinishReason.LENGTH
