"""Whose turn it is among those that wait: fair by tokens over clients, whatever one does."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.messages import BACKGROUND, Failed, FailureCode, Finished, Sampling, Submit
from server.engine.queueing import WaitingLine
from server.engine.sequence import Sequence

_IDS = itertools.count()


def _sequence(client: str, tokens: int, priority: int = 0) -> Sequence:
    sampling = Sampling(max_tokens=tokens - 1)
    name = f"r{next(_IDS)}"
    return Sequence(Submit(name, "a", (1,), sampling, 0.0, client=client, priority=priority))


@dataclass
class Oracle:
    """The paper's rule, written down as it stands there: tags when a request arrives.

    S = max(v at arrival, F of the client's previous one), F = S + length; the least S is next, and
    v is the S of the latest that was served. Everything is looked at each time.
    """

    waiting: list[tuple[float, int, Sequence]] = field(default_factory=list)
    finish: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    arrivals: int = 0

    def push(self, sequence: Sequence) -> None:
        client = sequence.request.client
        start = max(self.now, self.finish.get(client, 0.0))
        self.finish[client] = start + sequence.reserve
        self.waiting.append((start, self.arrivals, sequence))
        self.arrivals += 1

    def serve(self) -> Sequence:
        first = min(self.waiting, key=lambda each: each[:2])
        self.waiting.remove(first)
        self.now = first[0]
        if not self.waiting:
            self.finish.clear()
            self.now = 0.0
        return first[2]


_ARRIVAL = st.tuples(st.sampled_from("abcd"), st.integers(1, 40))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(_ARRIVAL, st.none()), max_size=60))
def test_turns_are_those_of_the_paper(steps: list[tuple[str, int] | None]) -> None:
    """Tags at the head of each client's line give the order that tags at arrival give."""
    line, oracle = WaitingLine(), Oracle()
    for step in [*steps, *[None] * len(steps)]:
        if step is not None:
            sequence = _sequence(*step)
            line.push(sequence)
            oracle.push(sequence)
        elif (first := line.first()) is not None:
            assert oracle.serve() is first
            line.take(first)
            assert len(line) == len(oracle.waiting)
    assert not oracle.waiting


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 64), min_size=40, max_size=40),
    st.lists(st.integers(1, 64), min_size=40, max_size=40),
    st.integers(1, 20),
)
def test_clients_that_wait_all_the_time_get_equal_shares(
    first: list[int], second: list[int], ahead: int
) -> None:
    """However requests differ in length, tokens differ by less than one request of each."""
    line = WaitingLine()
    for index, tokens in enumerate(first[:ahead]):  # one was there long before the other
        line.push(_sequence("first", tokens))
        if index % 2:
            line.take(_first(line))
    for tokens in first[ahead:]:
        line.push(_sequence("first", tokens))
    for tokens in second:
        line.push(_sequence("second", tokens))
    given_: Counter[str] = Counter()
    while {sequence.request.client for sequence in line} == {"first", "second"}:
        sequence = _first(line)
        line.take(sequence)
        given_[sequence.request.client] += sequence.reserve
        assert abs(given_["first"] - given_["second"]) <= 64 + 64


def _first(line: WaitingLine) -> Sequence:
    first = line.first()
    assert first is not None
    return first


def _order(line: WaitingLine) -> list[str]:
    order = []
    while (first := line.first()) is not None:
        order.append(first.request.client)
        line.take(first)
    return order


def test_in_order_of_arrival_a_flood_would_come_first() -> None:
    """The oracle of what was: the same arrivals, and who came last gets its turn second."""
    line = WaitingLine()
    for client in ["flood"] * 50 + ["late"]:
        line.push(_sequence(client, 10))
    order = _order(line)
    assert order.index("late") == 1
    assert order != ["flood"] * 50 + ["late"]


def test_who_asks_for_more_tokens_gets_fewer_turns() -> None:
    """Shares are of tokens: one request of 100 counts as ten of 10."""
    line = WaitingLine()
    for _ in range(10):
        line.push(_sequence("long", 100))
    for _ in range(100):
        line.push(_sequence("short", 10))
    assert Counter(_order(line)[:22]) == {"long": 2, "short": 20}


def test_who_leaves_before_its_turn_is_not_charged() -> None:
    """Requests that were cancelled while they waited cost their client nothing."""
    line = WaitingLine()
    gone = [_sequence("patient", 100) for _ in range(5)]
    stays = _sequence("patient", 10)
    for sequence in [*gone, stays, _sequence("other", 10), _sequence("other", 10)]:
        line.push(sequence)
    for sequence in gone:
        line.remove(sequence)
    assert _order(line) == ["patient", "other", "other"]
    with pytest.raises((ValueError, KeyError)):
        line.remove(stays)


def test_priorities_come_before_shares() -> None:
    """Only requests of one priority share; background ones come last."""
    line = WaitingLine()
    for client, priority in (("a", 0), ("a", -5), ("b", 0), ("a", BACKGROUND), ("a", -5)):
        line.push(_sequence(f"{client}{priority}", 10, priority))
    assert _order(line) == ["a-5", "a-5", "a0", "b0", f"a{BACKGROUND}"]


def test_ever_new_clients_are_not_remembered_for_ever() -> None:
    """Memory of clients is bounded though the queue never empties."""
    line = WaitingLine()
    line.push(_sequence("stays", 1 << 12))
    line.push(_sequence("stays", 1 << 12))
    for number in range(5000):
        line.push(_sequence(f"c{number}", 1))
        line.take(_first(line))
    assert max(len(level._given) for level in line._levels.values()) < 2000


def test_a_late_client_does_not_wait_for_a_flood(harness: Any, make_session: Any) -> None:
    """In the engine: with one slot, who comes behind thirty of another is served second."""
    session = make_session(slots=1)
    harness.attach(session)
    session.gate.clear()
    for number in range(30):
        harness.submit(f"flood{number}", [1], max_tokens=1, client="flood")
    harness.submit("late", [2], max_tokens=1, client="late")
    session.gate.set()
    names = [f"flood{number}" for number in range(30)]
    for name in (*names, "late"):
        harness.final(name)
    begun = {name: harness.events[name][0].emitted_s for name in (*names, "late")}
    assert sorted(begun, key=begun.__getitem__).index("late") <= 2


def test_who_waits_too_long_ends_once(make_harness: Any, session: Any) -> None:
    """Past its time in the queue a request ends RESOURCE_EXHAUSTED; one with a slot goes on."""
    now = [0.0]
    harness = make_harness(clock=lambda: now[0])
    harness.attach(session, budget=120)
    session.gate.clear()
    harness.engine.start()
    harness.submit("running", [1, 2], max_tokens=100, queue_until_s=5.0)
    while not session.steps:
        pass
    harness.submit("late", [1, 2], max_tokens=100, queue_until_s=5.0)
    harness.submit("patient", [1, 2], max_tokens=100, queue_until_s=50.0)
    now[0] = 6.0
    session.gate.set()
    late = harness.final("late")
    assert isinstance(late, Failed)
    assert late.code is FailureCode.RESOURCE_EXHAUSTED
    assert (late.usage.completion_tokens, late.timings.had_slot) == (0, False)
    for name in ("running", "patient"):
        final = harness.final(name)
        assert isinstance(final, Finished)
        assert final.usage.completion_tokens == 100
    assert [harness.finals(name) for name in ("running", "late", "patient")] == [1, 1, 1]
    assert harness.loads["a"].waiting_requests == 0
