"""One lane under any sequence of requests, cancels, deadlines and failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from artifacts.errors import BugError, SessionError
from server.engine.draft_model import DraftModel
from server.engine.drafter import Drafter
from server.engine.lane import Lane
from server.engine.messages import (
    Attach,
    Drafting,
    Event,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Generated,
    Sampling,
    Submit,
)
from server.engine.prefix_index import BLOCK
from server.engine.prompt_lookup import PromptLookup
from server.engine.scheduler import Share
from server.engine.sequence import Sequence
from server.engine.slots import SlotTable
from server.engine.speculation import Speculation

SLOTS, MAX_LENGTH, BUDGET, STEP_TOKENS = 3, 96, 180, 16

Oracle = Callable[[list[int], int], list[int]]


class Seer:
    """A drafter that knows what will come, and says every third token wrong."""

    round_s = 0.0

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.said = 0

    def reach(self, sequence: Sequence) -> int:
        return sequence.missing

    def draft(self, wanted: Iterable[tuple[Sequence, int]]) -> list[int]:
        counts = []
        for sequence, count in wanted:
            known = sequence.tokens[: sequence.known].tolist()
            for place, token in enumerate(self.oracle(known, count), sequence.known):
                self.said += 1
                sequence.tokens[place] = (token + (self.said % 3 == 0)) % 64
            counts.append(count)
        return counts

    def copied(self, source: int, target: int, length: int) -> None: ...

    def released(self, slot: int, keep: int) -> None: ...

    def terminate(self) -> None: ...


class Requests(RuleBasedStateMachine):
    """Drives a lane, with a record of each request's prompt and events."""

    def __init__(
        self, make_session: Any, oracle: Oracle, make_drafter: Callable[[], Drafter] | None = None
    ) -> None:
        super().__init__()
        self.oracle = oracle
        self.now_s = 0.0
        self.broken_rows = 0

        class Session(make_session):  # type: ignore[misc]
            def step(session, rows: Any) -> Any:  # noqa: N805 - self is the machine
                scores = super().step(rows)
                scores.logits[: self.broken_rows] = np.nan
                scores.best_logits[: self.broken_rows] = np.nan
                self.broken_rows = 0
                return scores

        def make() -> Any:
            return Session(SLOTS, MAX_LENGTH)

        drafting = make_drafter and Drafting(make_drafter(), make_drafter, 5)
        attach = Attach("a", make(), make, BUDGET, STEP_TOKENS, drafting=drafting)
        self.lane = Lane(attach, lambda: self.now_s)
        self.prompts: dict[str, list[int]] = {}
        self.tokens: dict[str, list[int]] = {}
        self.finals: dict[str, list[Finished | Failed]] = {}

    def take(self, events: Iterable[Event | None]) -> None:
        for event in events:
            if isinstance(event, Generated):
                assert not self.finals[event.request_id], "tokens after the final event"
                self.tokens[event.request_id] += [token.token_id for token in event.tokens]
            elif event is not None:
                self.finals[event.request_id].append(event)

    @rule(
        family=st.integers(0, 2),
        shared=st.integers(0, 50),
        own=st.lists(st.integers(0, 63), min_size=1, max_size=20),
        max_tokens=st.integers(1, 30),
        patience_s=st.none() | st.floats(0.5, 20),
    )
    def submit(
        self, family: int, shared: int, own: list[int], max_tokens: int, patience_s: float | None
    ) -> None:
        prompt = [(family * 7 + index) % 64 for index in range(shared)] + own
        name = str(len(self.prompts))
        self.prompts[name], self.tokens[name], self.finals[name] = prompt, [], []
        deadline_s = None if patience_s is None else self.now_s + patience_s
        sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
        request = Submit(name, "a", tuple(prompt), sampling, self.now_s, deadline_s)
        self.take([self.lane.submit(request)])

    @rule(index=st.integers(0, 60))
    def cancel(self, index: int) -> None:
        self.take([self.lane.cancel(str(index), FinishReason.CANCELLED)])

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.step_once()

    @rule(rows=st.integers(1, SLOTS))
    def step_with_broken_logits(self, rows: int) -> None:
        self.broken_rows = rows
        self.step_once()
        self.broken_rows = 0

    @rule()
    def step_that_fails(self) -> None:
        self.lane.session.fail_next = True  # type: ignore[attr-defined]
        try:
            self.step_once()
        except SessionError:
            self.take(self.lane.fail_running("planted"))
            self.lane.reload()
            assert self.lane.load().running_requests == 0
        self.lane.session.fail_next = False  # type: ignore[attr-defined]

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.take(self.lane.expire())

    @rule()
    def fail_all(self) -> None:
        self.take(self.lane.fail_all(FailureCode.UNAVAILABLE, "planted"))
        self.lane.reload()
        assert not self.lane.busy

    @invariant()
    def slots_and_budget_are_whole(self) -> None:
        self.lane.check_integrity()
        scheduler = self.lane._scheduler
        assert scheduler.table.owned_slots == len(scheduler.running)
        assert scheduler.table.reserved_tokens == sum(s.reserve for s in scheduler.running)

    @invariant()
    def nobody_ends_twice(self) -> None:
        assert all(len(finals) <= 1 for finals in self.finals.values())

    @invariant()
    def nobody_is_lost(self) -> None:
        opened = {name for name, finals in self.finals.items() if not finals}
        assert opened == self.lane._sequences.keys()
        scheduler = self.lane._scheduler
        held = [s.request.request_id for s in (*scheduler.running, *scheduler.waiting)]
        assert sorted(held) == sorted(opened)

    def teardown(self) -> None:
        for _ in range(2000):
            if not self.lane.busy:
                break
            self.step_once()
        for name, finals in self.finals.items():
            assert len(finals) == 1, "not exactly one final event"
            tokens = self.tokens[name]
            assert tokens == self.oracle(self.prompts[name], len(tokens))
        load = self.lane.load()
        assert (load.running_requests, load.waiting_requests) == (0, 0)
        assert (load.reserved_tokens, load.batch_rows) == (0, 0)
        self.lane.check_integrity()

    def step_once(self) -> None:
        self.now_s += 0.01
        events: list[Event] = []
        try:
            self.lane.step(events)
        finally:
            self.take(events)


@pytest.mark.parametrize("drafts", ["none", "told", "looked up", "of a model"])
def test_any_course_of_requests(make_session: Any, greedy_oracle: Any, drafts: str) -> None:
    """Each request ends once with the oracle's tokens; slots, budget and gauges add up."""
    drafters: dict[str, Callable[[], Drafter] | None] = {
        "none": None,
        "told": lambda: Seer(greedy_oracle),
        "looked up": PromptLookup,
        "of a model": lambda: DraftModel(make_session(SLOTS, 64), STEP_TOKENS, lambda: 0.0),
    }
    run_state_machine_as_test(
        lambda: Requests(make_session, greedy_oracle, drafters[drafts]),
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def _forgets_to_disown(patch: pytest.MonkeyPatch) -> None:
    def retain(table: SlotTable, slot: int, tokens: Any) -> bool:
        table._retained[slot] = len(tokens)
        return True

    patch.setattr(SlotTable, "retain", retain)


def _ends_twice(patch: pytest.MonkeyPatch) -> None:
    step = Lane.step

    def twice(lane: Lane, events: list[Event]) -> Any:
        result = step(lane, events)
        events.extend([event for event in events if isinstance(event, Finished)])
        return result

    patch.setattr(Lane, "step", twice)


def _keeps_what_ran(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lane, "fail_running", lambda lane, message: [])  # noqa: ARG005 - its signature


def _counts_a_wrong_guess_as_computed(patch: pytest.MonkeyPatch) -> None:
    learn = Speculation.learn

    def wrongly(speculation: Speculation, share: Share, accepted: int) -> None:
        learn(speculation, share, accepted)
        share.sequence.computed += accepted < share.drafted

    patch.setattr(Speculation, "learn", wrongly)


def _copies_from_the_wrong_place(patch: pytest.MonkeyPatch) -> None:
    index = "server.engine.prefix_index"
    patch.setattr(f"{index}.common", lambda one, other: min(len(one), len(other)))
    patch.setattr(f"{index}._keys", lambda tokens: iter(range(len(tokens) // BLOCK)))


@pytest.mark.parametrize(
    "plant",
    [
        _forgets_to_disown,
        _ends_twice,
        _keeps_what_ran,
        _copies_from_the_wrong_place,
        _counts_a_wrong_guess_as_computed,
    ],
)
def test_planted_faults_are_found(
    make_session: Any,
    greedy_oracle: Any,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    """The machine above can fail."""
    plant(monkeypatch)
    with pytest.raises((AssertionError, BugError, IndexError)):
        run_state_machine_as_test(
            lambda: Requests(make_session, greedy_oracle, lambda: Seer(greedy_oracle)),
            settings=settings(
                max_examples=200,
                stateful_step_count=40,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )
