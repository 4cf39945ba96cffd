"""When a request is refused for the sake of those that were accepted, and when it may come back."""

from __future__ import annotations

import pytest

from server.admission import Admission, Claim
from server.catalog import VariantLimits
from server.errors import OverloadedError


class Bench:
    """An admission with a clock of its own."""

    def __init__(self, slots: int, waiting: int, **options: float) -> None:
        self.now_s = 0.0
        self.limits = VariantLimits(
            max_length=8, slots=slots, kv_budget_tokens=8, max_waiting=waiting
        )
        self.admission = Admission(lambda: self.now_s, **options)  # type: ignore[arg-type]

    def enter(self, client: str = "", places: int = 1, priority: int = 0) -> Claim:
        claim = Claim(places, client, priority)
        self.admission.enter("a", self.limits, claim)
        return claim

    def end(self, claim: Claim, *, had_slot: bool = True) -> None:
        for _ in range(claim.places):
            self.admission.ended("a", claim, had_slot=had_slot)
        self.admission.leave("a", claim)

    def refusal(self, client: str = "", places: int = 1, priority: int = 0) -> OverloadedError:
        with pytest.raises(OverloadedError) as caught:
            self.enter(client, places, priority)
        return caught.value

    def learn(self, seconds_per_end: float, count: int = 100) -> None:
        """Have requests end at a pace while all slots are taken; nobody is left."""
        held = [self.enter() for _ in range(self.limits.slots)]
        for _ in range(count):
            self.now_s += seconds_per_end
            self.end(held.pop(0))
            held.append(self.enter())
        for claim in held:
            self.end(claim, had_slot=False)


def test_places_are_bounded_and_the_pace_is_learnt() -> None:
    """Retry-after is the time in which a place is likely to come free, within bounds."""
    bench = Bench(slots=2, waiting=1, max_queue_s=1000.0)
    for _ in range(3):
        bench.enter()
    refused = bench.refusal()
    assert refused.retry_after_s == 0.5  # a second over two slots, as long as nothing is known
    assert "3 unfinished requests, as many as it takes (2 running, 1 waiting)" in str(refused)
    for seconds, expected in ((2.0, 2.0), (0.001, 0.05), (60.0, 10.0)):
        for _ in range(300):
            bench.now_s += seconds
            bench.end(Claim())
            bench.enter()
        assert bench.refusal().retry_after_s == pytest.approx(expected, rel=0.01)
    bench.admission.enter("b", bench.limits, Claim())
    assert (bench.admission.unfinished("a"), bench.admission.unfinished("b")) == (3, 1)


def test_who_would_wait_too_long_is_refused_at_once() -> None:
    """Judged by the pace of ends, and told to come back once the queue is short enough."""
    bench = Bench(slots=2, waiting=100, max_queue_s=10.0)
    bench.learn(seconds_per_end=2.0)
    held = [bench.enter() for _ in range(2 + 5)]  # 5 wait, the last of them 10 s
    refused = bench.refusal()
    assert refused.retry_after_s == pytest.approx(2.0, rel=0.05)
    assert "would need about 12 s" in str(refused)
    bench.end(held[0])
    bench.enter()


def test_nothing_is_refused_for_its_wait_before_anything_is_known() -> None:
    """A fresh server takes what fits."""
    bench = Bench(slots=1, waiting=50, max_queue_s=0.001)
    for _ in range(51):
        bench.enter()
    assert "as many as it takes" in str(bench.refusal())


def test_many_that_were_never_begun_do_not_look_like_a_fast_server() -> None:
    """Those that leave the queue say nothing of how fast slots come free."""
    for had_slot, refused in ((False, True), (True, False)):  # the second is the planted fault
        bench = Bench(slots=1, waiting=300, max_queue_s=10.0)
        bench.learn(seconds_per_end=2.0)
        first = bench.enter()
        for claim in [bench.enter() for _ in range(5)]:
            bench.end(claim, had_slot=had_slot)
        for _ in range(100):
            bench.end(bench.enter(), had_slot=had_slot)
        for _ in range(5):
            bench.enter()
        if refused:
            assert "would need about 12 s" in str(bench.refusal())
        else:
            bench.enter()
        bench.end(first)


def test_a_slow_past_does_not_refuse_for_ever() -> None:
    """While nobody waits the pace is learnt too, as long as all slots are taken."""
    bench = Bench(slots=1, waiting=10, max_queue_s=10.0)
    bench.learn(seconds_per_end=60.0)
    running = bench.enter()
    assert "would need" in str(bench.refusal())
    for _ in range(100):
        bench.now_s += 0.5
        bench.end(running)
        running = bench.enter()
    bench.enter()


def test_a_client_waits_for_its_own_requests_and_not_for_all_of_anothers() -> None:
    """Clients take turns, so a flood of one does not refuse another for its wait."""
    bench = Bench(slots=1, waiting=100, max_queue_s=10.0)
    bench.learn(seconds_per_end=1.0)
    while True:
        try:
            bench.enter("flood")
        except OverloadedError:
            break
    for _ in range(5):
        bench.enter("quiet")
    assert "would need" in str(bench.refusal("quiet"))
    bench.enter("urgent", priority=-1)


def test_places_are_kept_for_clients_that_hold_less_than_their_share() -> None:
    """With several tokens nobody takes all; each one can always come to its share of them."""
    bench = Bench(slots=4, waiting=12, clients=2)
    held = [bench.enter("greedy") for _ in range(14)]  # 16 places, of which 2 are kept
    assert "has 14 of the 16 places of variant 'a'" in str(bench.refusal("greedy"))
    bench.enter("modest")
    bench.enter("modest")
    assert "as many as it takes" in str(bench.refusal("modest"))
    for _ in range(6):  # whoever is below its share takes what comes free
        bench.end(held.pop())
        bench.refusal("greedy")
        bench.enter("modest")
    assert bench.admission.unfinished("a") == 16


def test_one_client_alone_may_take_all_places() -> None:
    """Nothing is kept where nobody else can come, nor refused that could never be accepted."""
    bench = Bench(slots=4, waiting=12, clients=1)
    for _ in range(16):
        bench.enter("only")
    both = Bench(slots=4, waiting=0, clients=2)
    both.enter("greedy", places=4)
