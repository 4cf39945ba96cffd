"""One request: how it ends, and from when it is timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from protos import inference_pb2 as pb
from server.bench import arrivals
from server.bench.arrivals import Plan, send_all
from server.bench.attempt import Attempt, attempt

if TYPE_CHECKING:
    from tests.server.bench.conftest import Place


def request(tokens: int = 4) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        variant="a",
        token_ids=pb.TokenIds(ids=[1, 2, 3]),
        sampling=pb.SamplingParameters(max_tokens=tokens),
    )


async def one(place: Place, tokens: int = 4, **options: Any) -> Attempt:
    """Send one; it must be told of exactly once."""
    told: list[Attempt] = []
    timing = {"due_s": time.monotonic(), "timeout_s": 30.0} | options
    came = await attempt(place.stub, request(tokens), told.append, **timing)
    assert told == [came]
    return came


async def refuse(_: pb.GenerateRequest, context: Any) -> None:
    await context.abort(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the queue is full.",
        (("grpc-retry-pushback-ms", "1500"),),
    )


async def test_an_answered_request_has_its_figures(place: Place) -> None:
    """Tokens, the server's own wait, and who answered."""
    came = await one(place)
    assert (came.status, came.variant, came.tokens, len(came.gaps_s)) == ("ok", "a", 4, 3)
    assert (came.queue_s, came.cached_tokens, came.message, came.pause_s) == (0.25, 2, "", 0)
    assert came.first_token_s is not None
    assert 0 <= came.first_token_s <= came.duration_s
    assert sum(came.gaps_s) == pytest.approx(came.arrivals[-1][0] - came.arrivals[0][0])


def test_a_message_s_gap_is_divided_over_its_tokens() -> None:
    """Two tokens that come together each took half."""
    came = Attempt("a", "ok", 1.0, 1.5, 9.0, ((2.0, 1), (3.0, 1), (7.0, 2)))
    assert came.gaps_s == (1.0, 2.0, 2.0)
    assert (came.first_token_s, came.duration_s, came.lateness_s) == (1.0, 8.0, 0.5)
    assert (came.tokens, Attempt("", "internal", 0, 0, 1).first_token_s) == (4, None)


async def test_who_leaves_has_left_and_the_server_learns_of_it(place: Place) -> None:
    """After as many tokens as were wanted, which is no error of the server's."""
    never = asyncio.Event()

    async def hold(_: pb.GenerateRequest, context: Any) -> None:
        await context.write(pb.GenerateResponse(token_ids=[7, 8]))
        await never.wait()

    place.service.behave = hold
    came = await one(place, leaves_after=2)
    assert (came.status, came.tokens, came.queue_s) == ("left", 2, None)
    await asyncio.wait_for(place.service.cancelled.wait(), 30)


async def test_who_would_leave_later_reads_to_the_end(place: Place) -> None:
    """Only who has left counts as such."""
    assert (await one(place, leaves_after=5)).status == "ok"


async def test_a_refusal_has_the_server_s_words_and_wait(place: Place) -> None:
    """The push-back is when the user comes again; without one it is a moment."""
    place.service.behave = refuse
    came = await one(place)
    assert (came.status, came.message) == ("resource_exhausted", "the queue is full.")
    assert (came.variant, came.pause_s, came.tokens) == ("a", 1.5, 0)

    async def fail(_: pb.GenerateRequest, context: Any) -> None:
        await context.abort(grpc.StatusCode.INTERNAL, "oh")

    place.service.behave = fail
    came = await one(place)
    assert came.status == "internal"
    assert 0 < came.pause_s < 1


async def test_a_deadline_counts_from_when_the_request_was_due(place: Place) -> None:
    """A user does not wait longer because the generator was late."""
    never = asyncio.Event()

    async def hang(_: pb.GenerateRequest, __: Any) -> None:
        await never.wait()

    place.service.behave = hang
    came = await one(place, timeout_s=0.2)
    assert came.status == "deadline_exceeded"
    assert came.duration_s >= 0.2
    await one(place, due_s=time.monotonic() - 100, timeout_s=100.5)
    assert place.service.remaining_s[-1] < 0.6
    assert (await one(place, due_s=time.monotonic() - 9, timeout_s=3)).status == "deadline_exceeded"


async def test_a_stream_without_its_last_message_is_no_answer(place: Place) -> None:
    """It ended OK as gRPC sees it, and is not whole."""
    place.service.says_finish = False
    assert (await one(place)).status == "no_finish"


async def test_an_interrupted_request_has_a_status_too(place: Place) -> None:
    """It is told before the interruption goes on."""
    never, told = asyncio.Event(), list[Attempt]()

    async def hang(_: pb.GenerateRequest, __: Any) -> None:
        await never.wait()

    place.service.behave = hang
    now_s = time.monotonic()
    task = asyncio.create_task(
        attempt(place.stub, request(), told.append, due_s=now_s, timeout_s=30)
    )
    await asyncio.wait_for(place.service.begun.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [came.status for came in told] == ["interrupted"]


STALL_S, BEHIND = 0.5, 10


def judge_waits(attempts: Sequence[Attempt]) -> None:
    """All who came while the server stood still waited until it went on."""
    stalled = min(attempts, key=lambda came: came.due_s)
    freed_s = stalled.arrivals[0][0]
    behind = [came for came in attempts if came.due_s <= freed_s - STALL_S / 2]
    assert len(behind) >= BEHIND
    assert all((came.first_token_s or 0.0) >= STALL_S / 2 for came in behind)


async def test_a_wait_counts_from_when_the_request_was_due(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stalls holds up sending as well; counted from sending, nobody had waited."""
    monkeypatch.setattr(arrivals, "_MOST_AT_A_TIME", 1)

    async def stall_once(_: pb.GenerateRequest, __: Any) -> None:
        if len(place.service.requests) == 1:
            await asyncio.sleep(STALL_S)

    place.service.behave = stall_once
    attempts: list[Attempt] = []

    async def send(_: int, due_s: float) -> float:
        await attempt(place.stub, request(1), attempts.append, due_s=due_s, timeout_s=30)
        return 0.0

    await send_all(Plan(200.0, 1, None, 60, seed=1), send)
    judge_waits(attempts)
    with pytest.raises(AssertionError):
        judge_waits([replace(came, due_s=came.sent_s) for came in attempts])
    # What the generator did not send in time shows as its lateness.
    assert sum(came.lateness_s >= STALL_S / 2 for came in attempts) >= BEHIND
