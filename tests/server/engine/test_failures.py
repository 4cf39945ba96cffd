"""What the engine does when a session, or the engine itself, fails."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from artifacts.errors import BugError, SessionError
from server.engine.messages import FailureCode, Finished

Oracle = Callable[[Sequence[int], int], list[int]]


def test_old_session_is_gone_before_the_new_one_is_loaded(
    make_harness: Any, make_session: Any
) -> None:
    """Memory need not hold two: neither the lane nor the error's frames keep the old session."""

    class Chained(make_session):  # type: ignore[misc]
        def step(self, rows: Any) -> Any:  # noqa: ARG002 - the session's signature
            try:
                self.run()
            except RuntimeError as error:
                raise SessionError("planted") from error

        def run(self) -> None:
            raise RuntimeError

    def rebuild() -> Any:
        gc.collect()
        kept.append(old() is not None)
        return make_session()

    kept: list[bool] = []
    session = Chained()
    old = weakref.ref(session)
    harness = make_harness()
    harness.attach(session, rebuild=rebuild)
    del session
    harness.submit("broken", [1, 2, 3])
    harness.engine.start()
    harness.final("broken")
    harness.submit("next", [1, 2, 3])
    assert isinstance(harness.final("next"), Finished)
    harness.engine.stop()
    assert kept == [False]


def test_reload_may_take_longer_than_a_step_but_not_for_ever(
    make_harness: Any, make_session: Any
) -> None:
    """A reload is not taken for a hanging step; one that never ends is noticed."""
    now, loading, loaded = [0.0], threading.Event(), threading.Event()
    session = make_session()
    session.fail_next = True

    def rebuild() -> Any:
        loading.set()
        loaded.wait(20)
        return make_session()

    harness = make_harness(clock=lambda: now[0], hang_floor_s=10.0)
    harness.engine.start()
    harness.attach(session, rebuild=rebuild)
    harness.submit("broken", [1, 2, 3])
    assert loading.wait(20)
    now[0] = 50.0
    assert harness.engine.overdue() is None
    now[0] = 101.0
    assert harness.engine.overdue() == "a"
    harness.submit("waiting", [1, 2, 3])
    assert not harness.engine.abort(timeout_s=0.05), "there is no step to terminate"
    loaded.set()
    assert harness.final("waiting").code == FailureCode.UNAVAILABLE


def test_fault_of_the_engine_is_reported_and_ends_everything(
    make_harness: Any, session: Any
) -> None:
    """What no step may be blamed for ends the thread, after one final event for each request."""
    harness = make_harness()
    reported: list[tuple[str, BaseException]] = []
    fault = BugError("planted")

    def stepped(*_: object) -> None:
        raise fault

    harness.stepped = stepped
    harness.failed = lambda variant, error: reported.append((variant, error))
    harness.attach(session)
    session.gate.clear()
    harness.submit("complete", [1], max_tokens=1)
    harness.submit("running", [1], max_tokens=50)
    for index in range(10):
        harness.submit(f"waiting {index}", [1], max_tokens=50)
    harness.engine.start()
    while not session.steps:
        threading.Event().wait(0.001)
    harness.submit("unread", [1])
    session.gate.set()
    names = ["complete", "running", *(f"waiting {index}" for index in range(10))]
    assert {harness.final(name).code for name in names} == {FailureCode.INTERNAL}
    assert harness.final("unread").code == FailureCode.UNAVAILABLE
    assert harness.engine.stop()
    assert {harness.finals(name) for name in [*names, "unread"]} == {1}
    assert reported == [("", fault)]
    assert not harness.engine.alive()
    assert harness.engine.overdue() is None


def test_failure_after_sampling_loses_no_final_event(make_harness: Any, make_session: Any) -> None:
    """A session that fails while slots are given back: who had finished has finished."""

    class Clinging(make_session):  # type: ignore[misc]
        releases = 0

        def release(self, slot: int, keep: int = 0) -> None:
            super().release(slot, keep)
            self.releases += 1
            if self.releases == 5:  # three admissions, one end, and the second end
                raise SessionError("planted")

    harness = make_harness()
    harness.attach(Clinging())
    for name, count in (("first", 2), ("second", 2), ("third", 50)):
        harness.submit(name, [1, 2], max_tokens=count)
    harness.engine.start()
    assert isinstance(harness.final("first"), Finished)
    assert len(harness.tokens("first")) == 2
    assert harness.final("second").code == FailureCode.INTERNAL
    assert harness.final("third").code == FailureCode.INTERNAL
    harness.submit("after", [1, 2])
    assert isinstance(harness.final("after"), Finished)
    harness.engine.stop()
    assert {harness.finals(name) for name in ("first", "second", "third", "after")} == {1}


@pytest.mark.parametrize("prompt_end", [[63, 62, 61], None], ids=["copied", "taken over"])
def test_poisoned_cache_is_not_reused(
    harness: Any, make_session: Any, greedy_oracle: Oracle, prompt_end: list[int] | None
) -> None:
    """After logits that are not finite the same prompt is computed afresh, and succeeds."""

    class Poisonable(make_session):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.poisoned: set[int] = set()

        def step(self, rows: Any) -> Any:
            scores = super().step(rows)
            asking = [row for row in rows if row.logits]
            for index, row in enumerate(asking):
                if row.slot in self.poisoned:
                    scores.logits[index] = np.nan
                    scores.best_logits[index] = np.nan
            return scores

        def copy(self, source: int, target: int, length: int) -> None:
            super().copy(source, target, length)
            if source in self.poisoned:
                self.poisoned.add(target)

        def release(self, slot: int, keep: int = 0) -> None:
            super().release(slot, keep)
            if keep == 0:
                self.poisoned.discard(slot)

    session = Poisonable()
    harness.attach(session)
    prompt = list(range(40))
    harness.submit("first", prompt, max_tokens=5)
    harness.final("first")
    session.poisoned.add(0)
    again = prompt[:30] + prompt_end if prompt_end else prompt + greedy_oracle(prompt, 5) + [9]
    harness.submit("poisoned", again)
    final = harness.final("poisoned")
    assert final.code == FailureCode.INTERNAL
    assert final.usage.cached_tokens > 0
    harness.submit("retry", again)
    assert harness.final("retry").usage.cached_tokens == 0
    assert harness.tokens("retry") == greedy_oracle(again, 8)
    assert not session.poisoned
