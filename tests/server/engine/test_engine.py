"""The engine as a whole, against the slow oracle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from artifacts.manifest import Forms
from artifacts.scores import Scores
from artifacts.session import Row
from server.engine.messages import Cancel, Detach, Failed, FailureCode, Finished, FinishReason

Oracle = Callable[[Sequence[int], int], list[int]]


def test_batched_equals_alone(harness: Any, session: Any, greedy_oracle: Oracle) -> None:
    """Whoever shares the batch, a request's tokens are those it gets alone."""
    harness.attach(session)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 64, int(rng.integers(1, 60))).tolist() for _ in range(30)]
    counts = [int(rng.integers(1, 30)) for _ in prompts]
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        harness.submit(str(index), prompt, max_tokens=count)
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        final = harness.final(str(index))
        assert isinstance(final, Finished)
        assert harness.tokens(str(index)) == greedy_oracle(prompt, count)
        assert final.usage.completion_tokens == count
    assert max(len(rows) for rows in session.steps) > 1


def test_prompt_is_chunked_and_streams_go_on(
    harness: Any, session: Any, greedy_oracle: Oracle
) -> None:
    """A long prompt is computed within the step budget while others get a token per step."""
    harness.attach(session, step_tokens=16)
    session.gate.clear()
    harness.submit("stream", [1, 2, 3], max_tokens=60)
    long_prompt = list(range(50)) * 4
    harness.submit("long", long_prompt, max_tokens=4)
    session.gate.set()
    harness.final("long")
    harness.final("stream")
    assert harness.tokens("long") == greedy_oracle(long_prompt, 4)
    assert harness.tokens("stream") == greedy_oracle([1, 2, 3], 60)
    mixed = [rows for rows in session.steps if len(rows) == 2]
    assert len(mixed) >= len(long_prompt) // 16
    assert all(sum(len(row.tokens) for row in rows) <= 16 for rows in session.steps)


def test_reused_prefix_equals_fresh(harness: Any, session: Any, greedy_oracle: Oracle) -> None:
    """A prompt that begins like an earlier one reuses its cache and gets the same tokens."""
    harness.attach(session)
    prompt = list(range(40))
    harness.submit("first", prompt, max_tokens=5)
    harness.final("first")
    longer = prompt + greedy_oracle(prompt, 5) + [7, 8, 9]
    forked = [*prompt[:30], 63, 62, 61]
    harness.submit("longer", longer, max_tokens=6)
    assert harness.final("longer").usage.cached_tokens == 44
    harness.submit("forked", forked, max_tokens=6)
    assert harness.final("forked").usage.cached_tokens == 30
    assert harness.tokens("longer") == greedy_oracle(longer, 6)
    assert harness.tokens("forked") == greedy_oracle(forked, 6)


def test_wrong_cache_is_noticed(
    make_session: Any, make_harness: Any, greedy_oracle: Oracle
) -> None:
    """The oracle session can fail: a cache with two slots swapped gives other tokens."""

    class Swapped(make_session):  # type: ignore[misc]
        def copy(self, source: int, target: int, length: int) -> None:
            super().copy(source, target, length)
            self.cache[target][0] ^= 1

    harness = make_harness()
    harness.engine.start()
    harness.attach(Swapped())
    prompt = list(range(40))
    harness.submit("first", prompt, max_tokens=5)
    harness.final("first")
    forked = [*prompt[:30], 63, 62, 61]
    harness.submit("forked", forked, max_tokens=6)
    harness.final("forked")
    harness.engine.stop()
    assert harness.tokens("forked") != greedy_oracle(forked, 6)


def test_stop_token_ends_and_ignore_eos_does_not(
    harness: Any, session: Any, greedy_oracle: Oracle
) -> None:
    """An end id ends with its name; ignore_eos goes on; a stop token id ends all the same."""
    harness.attach(session)
    expected = greedy_oracle([5, 6], 8)
    end = expected[3]
    first = expected.index(end)
    harness.submit("eos", [5, 6], eos_token_ids=frozenset({end}))
    harness.submit("ignored", [5, 6], eos_token_ids=frozenset({end}), ignore_eos=True)
    harness.submit("stop", [5, 6], stop_token_ids=frozenset({end}), ignore_eos=True)
    for name in ("eos", "stop"):
        final = harness.final(name)
        assert isinstance(final, Finished)
        assert (final.reason, final.stop_token_id) == (FinishReason.STOP, end)
        assert harness.tokens(name) == expected[: first + 1]
    final = harness.final("ignored")
    assert isinstance(final, Finished)
    assert final.reason == FinishReason.LENGTH
    assert harness.tokens("ignored") == expected


def test_min_tokens_holds_the_end_back(harness: Any, session: Any) -> None:
    """Before min_tokens no end id is chosen at all."""
    harness.attach(session)
    everything = frozenset(range(63))
    harness.submit("r", [1], min_tokens=5, max_tokens=9, eos_token_ids=everything)
    final = harness.final("r")
    assert harness.tokens("r")[:5] == [63] * 5
    assert final.usage.completion_tokens == 6


def test_deadline_ends_waiting_and_running(make_harness: Any, session: Any) -> None:
    """A passed deadline ends a request in the queue and in a slot, and frees the slot."""
    now = [0.0]
    harness = make_harness(clock=lambda: now[0])
    harness.attach(session, budget=120)
    harness.engine.start()
    session.gate.clear()
    harness.submit("running", [1, 2], max_tokens=100, deadline_s=5.0)
    harness.submit("waiting", [1, 2], max_tokens=100, deadline_s=5.0)
    harness.submit("fine", [1, 2], max_tokens=3)
    now[0] = 6.0
    session.gate.set()
    for name in ("running", "waiting"):
        final = harness.final(name)
        assert isinstance(final, Failed)
        assert final.code == FailureCode.DEADLINE_EXCEEDED
    assert isinstance(harness.final("fine"), Finished)
    harness.engine.stop()


def test_failed_step_ends_its_requests_and_the_queue_is_served(
    harness: Any, make_session: Any, greedy_oracle: Oracle
) -> None:
    """After an exception the running requests end INTERNAL and the rest gets a fresh session."""
    session = make_session(slots=1)
    session.gate.clear()
    harness.attach(session)
    harness.submit("broken", [1, 2, 3], max_tokens=8)
    harness.submit("next", [4, 5, 6], max_tokens=8)
    session.fail_next = True
    session.gate.set()
    final = harness.final("broken")
    assert isinstance(final, Failed)
    assert final.code == FailureCode.INTERNAL
    assert isinstance(harness.final("next"), Finished)
    assert harness.tokens("next") == greedy_oracle([4, 5, 6], 8)


def test_lane_that_cannot_be_rebuilt_is_detached(harness: Any, make_session: Any) -> None:
    """Another failure while rebuilding ends everything of the variant; others are untouched."""
    session, other = make_session(slots=1), make_session()

    def cannot() -> Any:
        raise MemoryError

    session.gate.clear()
    harness.attach(session, "a", rebuild=cannot)
    harness.attach(other, "b")
    harness.submit("one", [1, 2, 3], "a")
    harness.submit("two", [1, 2, 3], "a")
    session.fail_next = True
    session.gate.set()
    assert harness.final("one").code == FailureCode.INTERNAL
    assert harness.final("two").code == FailureCode.UNAVAILABLE
    harness.submit("late", [1], "a")
    assert harness.final("late").code == FailureCode.UNAVAILABLE
    assert [variant for variant, _ in harness.lost] == ["a"]
    harness.submit("other", [1], "b")
    assert isinstance(harness.final("other"), Finished)


def test_hang_is_noticed_and_aborted(make_harness: Any, session: Any) -> None:
    """A step far beyond its time makes the engine not alive; abort ends all and the thread."""
    now = [0.0]
    harness = make_harness(clock=lambda: now[0], hang_floor_s=10.0)
    harness.engine.start()
    harness.attach(session)
    session.gate.clear()
    harness.submit("r", [1, 2, 3])
    harness.submit("w", [1, 2, 3])
    deadline = time.monotonic() + 10
    while not session.steps and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert harness.engine.alive()
    now[0] = 11.0
    assert harness.engine.overdue() == "a"
    assert not harness.engine.alive()
    assert harness.engine.abort()
    assert harness.final("r").code == FailureCode.UNAVAILABLE
    assert harness.final("w").code == FailureCode.UNAVAILABLE


@pytest.mark.parametrize("seed", range(4))
def test_cancel_storm_leaves_nothing(
    harness: Any, make_session: Any, greedy_oracle: Oracle, seed: int
) -> None:
    """Cancels in every state: each request ends once, slots and gauges return to zero."""
    session = make_session(slots=4)
    harness.attach(session, budget=400, step_tokens=8)
    rng = np.random.default_rng(seed)
    names = [f"{seed}-{index}" for index in range(120)]
    for name in names:
        prompt = rng.integers(0, 64, int(rng.integers(1, 80))).tolist()
        harness.submit(name, prompt, max_tokens=int(rng.integers(1, 40)))
        if rng.random() < 0.8:
            victim = names[int(rng.integers(0, len(names)))]
            if rng.random() < 0.3:
                harness.wait_tokens(name, 0)
            harness.engine.post(Cancel(victim, FinishReason.CANCELLED))
        if rng.random() < 0.2:
            threading.Event().wait(0.002)
    for name in names:
        harness.final(name)
        assert harness.finals(name) == 1
    harness.submit("after", [1, 2, 3], max_tokens=5)
    harness.final("after")
    assert harness.tokens("after") == greedy_oracle([1, 2, 3], 5)
    load = harness.loads["a"]
    assert (load.running_requests, load.waiting_requests, load.reserved_tokens) == (0, 0, 0)
    lane = harness.engine._lanes["a"]
    lane.check_integrity()
    assert not lane._sequences
    assert not harness.engine._owners


def test_cancel_frees_the_slot_within_one_step(harness: Any, make_session: Any) -> None:
    """The request behind a cancelled one runs in the very next step."""
    session = make_session(slots=1)
    harness.attach(session)
    session.gate.clear()
    harness.submit("gone", [1, 2], max_tokens=200)
    while not session.steps:
        threading.Event().wait(0.01)
    harness.submit("next", [3, 4], max_tokens=1)
    harness.engine.post(Cancel("gone", FinishReason.CANCELLED))
    session.gate.set()
    harness.final("next")
    assert len(session.steps) == 2
    assert harness.final("gone").reason == FinishReason.CANCELLED


def test_detach_ends_requests_unavailable(harness: Any, session: Any) -> None:
    """A variant that is taken away ends its requests once each."""
    harness.attach(session)
    session.gate.clear()
    harness.submit("r", [1], max_tokens=50)
    harness.engine.post(Detach("a"))
    session.gate.set()
    assert harness.final("r").code == FailureCode.UNAVAILABLE
    assert harness.finals("r") == 1


def test_a_variant_that_leaves_when_idle_finishes_what_it_has(
    harness: Any, session: Any, greedy_oracle: Oracle
) -> None:
    """Who is being answered notices nothing, running or waiting; who comes now is refused."""
    harness.attach(session)
    gone = threading.Event()
    session.gate.clear()
    accepted = [f"r{index}" for index in range(session.slots + 2)]
    for name in accepted:
        harness.submit(name, [1, 2], max_tokens=20)
    harness.engine.post(Detach("a", when_idle=True, gone=gone.set))
    harness.submit("late", [1], max_tokens=1)
    session.gate.set()
    assert harness.final("late").code == FailureCode.UNAVAILABLE
    for name in accepted:
        assert isinstance(harness.final(name), Finished)
        assert harness.tokens(name) == greedy_oracle([1, 2], 20)
        assert harness.finals(name) == 1
    assert gone.wait(10)
    harness.submit("later", [1], max_tokens=1)
    assert harness.final("later").code == FailureCode.UNAVAILABLE


@pytest.mark.parametrize("when_idle", [True, False])
def test_an_idle_variant_leaves_at_once_and_can_come_back(
    harness: Any, session: Any, *, when_idle: bool
) -> None:
    """Whoever waits for it to be gone is told, also when it was never there."""
    for attach in (False, True):
        if attach:
            harness.attach(session)
        gone = threading.Event()
        harness.engine.post(Detach("a", when_idle=when_idle, gone=gone.set))
        assert gone.wait(10)
    harness.attach(session)
    harness.submit("r", [1, 2], max_tokens=3)
    assert isinstance(harness.final("r"), Finished)


def test_a_leaving_variant_can_be_replaced_or_cut(harness: Any, session: Any) -> None:
    """Whatever ends it, each request has one end and the leaver is told once."""
    for end in ("replace", "cut"):
        harness.attach(session)
        gone: list[str] = []
        session.gate.clear()
        harness.submit(end, [1], max_tokens=50)
        harness.engine.post(Detach("a", when_idle=True, gone=lambda: gone.append("gone")))  # noqa: B023 - called in this turn
        if end == "replace":
            harness.attach(session)
        else:
            harness.engine.post(Detach("a"))
        session.gate.set()
        assert harness.final(end).code == FailureCode.UNAVAILABLE
        harness.submit("after " + end, [1], max_tokens=1)
        harness.final("after " + end)
        assert (harness.finals(end), gone) == (1, ["gone"])


def test_too_large_request_ends_at_once(harness: Any, session: Any) -> None:
    """A request that no step could ever serve is not queued for ever."""
    harness.attach(session, budget=64)
    harness.submit("r", [1] * 60, max_tokens=10)
    assert harness.final("r").code == FailureCode.UNAVAILABLE


def test_same_seed_same_text_whatever_the_batch(harness: Any, make_session: Any) -> None:
    """Sampling depends on seed and position, not on neighbours or order."""
    harness.attach(make_session(slots=8), step_tokens=32)
    options = {"temperature": 1.0, "top_p": 0.9, "seed": 7, "max_tokens": 20}
    harness.submit("alone", [9, 8, 7], **options)
    harness.final("alone")
    for index in range(12):
        harness.submit(f"n{index}", [index, 1], temperature=1.3, seed=index, max_tokens=30)
        harness.submit(f"s{index}", [9, 8, 7], **options)
    for index in range(12):
        harness.final(f"s{index}")
        assert harness.tokens(f"s{index}") == harness.tokens("alone")
    harness.submit("other", [9, 8, 7], **{**options, "seed": 8})
    harness.final("other")
    assert harness.tokens("other") != harness.tokens("alone")


def test_idle_engine_uses_no_processor(harness: Any, session: Any) -> None:
    """Without requests the thread sleeps: no processor time passes."""
    harness.attach(session)
    harness.submit("r", [1])
    harness.final("r")
    threading.Event().wait(0.05)
    before = time.process_time()
    threading.Event().wait(0.5)
    assert time.process_time() - before < 0.1


def test_unknown_cancel_is_ignored(harness: Any, session: Any) -> None:
    """A cancel that comes after the end, or for nobody, changes nothing."""
    harness.attach(session)
    harness.engine.post(Cancel("nobody", FinishReason.CANCELLED))
    harness.submit("r", [1])
    harness.final("r")
    harness.engine.post(Cancel("r", FinishReason.CANCELLED))
    harness.submit("s", [1])
    harness.final("s")
    assert harness.finals("r") == 1


def test_variants_share_engine_seconds_by_weight(make_harness: Any, make_session: Any) -> None:
    """Two busy variants get engine time in proportion to their weights."""
    ticks = [0.0]

    class Timed(make_session):  # type: ignore[misc]
        def step(self, rows: Any) -> Any:
            ticks[0] += 0.01
            return super().step(rows)

    harness = make_harness(clock=lambda: ticks[0])
    heavy, light = Timed(slots=1, max_length=2000), Timed(slots=1, max_length=2000)
    harness.attach(heavy, "heavy", budget=2000, weight=3.0)
    harness.attach(light, "light", budget=2000, weight=1.0)
    harness.submit("h", [1], "heavy", max_tokens=900)
    harness.submit("l", [1], "light", max_tokens=900)
    harness.engine.start()
    harness.final("h")
    harness.engine.stop()
    order = [variant for kind, variant, _ in harness.observed if kind == "stepped"][:1000]
    share = order.count("heavy") / len(order)
    assert share == pytest.approx(0.75, abs=0.03)


def test_gauges_are_shown_before_the_answer(make_harness: Any, session: Any) -> None:
    """Who reads the gauges with the final event in hand sees the request gone."""
    seen: dict[str, tuple[int, int, int]] = {}
    now = [0.0]
    harness = make_harness(clock=lambda: now[0])
    deliver = harness.engine._deliver

    def record(events: Sequence[Any]) -> None:
        for event in events:
            if isinstance(event, (Finished, Failed)):
                load = harness.loads["a"]
                seen[event.request_id] = (
                    load.running_requests,
                    load.waiting_requests,
                    load.reserved_tokens,
                )
        deliver(events)

    harness.engine._deliver = record
    harness.engine.start()
    harness.attach(session)
    harness.submit("finished", [1, 2], max_tokens=3)
    harness.final("finished")
    harness.submit("too large", [1] * 250, max_tokens=100)
    harness.final("too large")
    for name in ("cancelled", "late", "broken", "detached"):
        session.gate.clear()
        steps = len(session.steps)
        harness.submit(name, [1], max_tokens=200, deadline_s=now[0] + 5 if name == "late" else None)
        while len(session.steps) == steps:
            threading.Event().wait(0.001)
        if name == "cancelled":
            harness.engine.post(Cancel(name, FinishReason.CANCELLED))
        elif name == "late":
            now[0] += 6
        elif name == "broken":
            session.fail_next = True
        else:
            harness.engine.post(Detach("a"))
        session.gate.set()
        harness.final(name)
        if name == "broken":
            harness.attach(session)
    harness.engine.stop()
    assert set(seen) == {"finished", "too large", "cancelled", "late", "broken", "detached"}
    assert set(seen.values()) == {(0, 0, 0)}


def _by_role(session_class: Any) -> Any:
    """A session whose numbers depend on the form that computed each token of the prefix."""

    class ByRole(session_class):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.forms = Forms(choice="by_role", prompts="prompts.onnx")

        def step(self, rows: Sequence[Row]) -> Scores:
            return super().step([replace(row, tokens=_tagged(row)) for row in rows])  # type: ignore[no-any-return]

    return ByRole()


def _tagged(row: Row) -> Any:
    tokens = row.tokens.copy()
    tokens[len(tokens) - row.logits :] += _GENERATED
    return tokens


_GENERATED = 1000


def _fresh(harness: Any, prompt: Sequence[int], count: int) -> list[int]:
    """What a prompt gets where nothing is remembered."""
    prefix = [*prompt[:-1], prompt[-1] + _GENERATED]
    found: list[int] = []
    for _ in range(count):
        found.append(int(harness.logits(prefix).argmax()))
        prefix.append(found[-1] + _GENERATED)
    return found


@pytest.mark.parametrize("is_known", [True, False])
def test_answers_are_not_reused_where_their_form_is_another(
    harness: Any,
    make_session: Any,
    is_known: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A conversation's next turn is what it would be on a fresh server; the twin's is not."""
    session = _by_role(make_session)
    if not is_known:
        session.forms = None
    harness.attach(session)
    prompt = list(range(40))
    harness.submit("first", prompt, max_tokens=20)
    harness.final("first")
    answer = harness.tokens("first")
    assert answer == _fresh(harness, prompt, 20)
    longer = [*prompt, *answer, 7, 8, 9]
    harness.submit("longer", longer, max_tokens=6)
    cached = harness.final("longer").usage.cached_tokens
    assert cached == (39 if is_known else 59)
    assert (harness.tokens("longer") == _fresh(harness, longer, 6)) is is_known
