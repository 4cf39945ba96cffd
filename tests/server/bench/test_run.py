"""A run: what is sent to the server, and that nothing is lost of what came."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from protos import inference_pb2 as pb
from server.bench.arrivals import Plan
from server.bench.attempt import Attempt
from server.bench.lengths import Lengths
from server.bench.run import Load, Record, Run
from server.bench.session import open_run
from server.client import RefusedError, UnreachableError

if TYPE_CHECKING:
    from tests.server.bench.conftest import Place

LOAD = Load(Plan(None, 8, None, 120, seed=5), Lengths("uniform", 4, 12), Lengths("uniform", 2, 6))


@asynccontextmanager
async def opened(place: Place, load: Load, **options: Any) -> AsyncIterator[Run]:
    async with open_run(place.target, "a text", load, **options) as run:
        yield run


async def measured(place: Place, load: Load, **options: Any) -> Record:
    """A whole run; every request that was sent has ended once."""
    ended: list[Attempt] = []
    async with opened(place, load, ended=ended.append, **options) as run:
        await run.measure()
        record = run.record()
        assert run.sent == len(record.attempts) == len(ended)
    assert 0 <= record.sending_s <= record.seconds
    return record


def sent(place: Place) -> list[bytes]:
    """The requests that the server got, in no order."""
    return sorted(
        request.SerializeToString(deterministic=True) for request in place.service.requests
    )


async def test_a_seed_repeats_a_run(place: Place) -> None:
    """Byte for byte, whatever the order of ends; another seed gives other requests."""
    await measured(place, LOAD)
    first = sent(place)
    for seed, same in ((5, True), (6, False)):
        place.service.requests.clear()
        await measured(place, replace(LOAD, plan=replace(LOAD.plan, seed=seed)))
        assert (sent(place) == first) is same


async def test_lengths_are_those_that_were_asked_for(place: Place) -> None:
    """Prompts and answers, exactly so long, never ended early."""
    record = await measured(place, replace(LOAD, shared_prefix=30))
    assert {one.tokens for one in record.attempts} == set(range(2, 7))
    requests = place.service.requests
    assert {len(request.token_ids.ids) - 30 for request in requests} == set(range(4, 13))
    assert len({tuple(request.token_ids.ids[:30]) for request in requests}) == 1
    assert all(request.sampling.ignore_eos for request in requests)
    assert len({tuple(request.token_ids.ids[30:33]) for request in requests}) == len(requests)


async def test_variants_are_asked_in_turn(place: Place) -> None:
    """The same number of requests each; unnamed, traffic is routed by the server."""
    record = await measured(place, replace(LOAD, variants=("a", "b", "c")))
    assert Counter(one.variant for one in record.attempts) == dict.fromkeys("abc", 40)
    record = await measured(place, LOAD)
    assert {one.variant for one in record.attempts} == {"routed"}


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
async def test_the_share_that_leaves_is_the_cancel_rate(place: Place, rate: float) -> None:
    """Within five deviations of a binomial."""
    plan = replace(LOAD.plan, requests=400)
    record = await measured(place, replace(LOAD, plan=plan, cancel_rate=rate))
    statuses = Counter(one.status for one in record.attempts)
    assert set(statuses) <= {"ok", "left"}
    assert abs(statuses["left"] - 400 * rate) <= 5 * (400 * rate * (1 - rate)) ** 0.5
    assert all(
        one.tokens >= 1 and one.queue_s is None for one in record.attempts if one.status == "left"
    )


async def test_the_warm_up_is_sent_and_not_counted(place: Place) -> None:
    """Its prompts are none of the run's."""
    told: list[Attempt] = []
    async with opened(place, LOAD, ended=told.append) as run:
        await run.warm_up(0)
        assert not place.service.requests
        await run.warm_up(20)
        assert (len(place.service.requests), run.sent, run.record().attempts) == (20, 0, ())
        await run.measure()
        assert run.sent == len(run.record().attempts) == len(told) == 120
    beginnings = {tuple(request.token_ids.ids[:3]) for request in place.service.requests}
    assert len(beginnings) == 140


async def test_requests_are_spread_over_connections(place: Place) -> None:
    """A server takes only so many streams of one connection, and would queue the rest unseen."""
    await measured(place, LOAD, connections=3)
    assert len(place.service.peers) == 3


async def test_who_asks_and_until_when_goes_with_each_request(place: Place) -> None:
    """The token and the deadline."""
    load = replace(LOAD, timeout_s=77.0)
    await measured(place, load, metadata=(("authorization", "Bearer s"),))
    assert {entry["authorization"] for entry in place.service.metadata} == {"Bearer s"}
    assert all(60 < left < 78 for left in place.service.remaining_s)  # gRPC rounds up


async def test_refused_requests_are_counted_and_a_closed_loop_does_not_spin(place: Place) -> None:
    """Each is tried once; its user comes back when the server said."""

    async def refuse_some(_: pb.GenerateRequest, context: Any) -> None:
        if len(place.service.requests) % 3 == 0:
            metadata = (("grpc-retry-pushback-ms", "20"),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", metadata)

    place.service.behave = refuse_some
    record = await measured(place, LOAD)
    statuses = Counter(one.status for one in record.attempts)
    assert statuses == {"ok": 80, "resource_exhausted": 40}
    place.service.requests.clear()

    async def refuse_all(_: pb.GenerateRequest, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "nobody serves")

    place.service.behave = refuse_all
    await measured(place, replace(LOAD, plan=Plan(None, 2, 0.5, None)))
    assert 2 <= len(place.service.requests) <= 2 * 6


@pytest.mark.parametrize("rate", [None, 400.0])
async def test_an_interrupted_run_keeps_what_came(place: Place, rate: float | None) -> None:
    """Those in flight have a status as well, and the server is told that nobody waits."""
    never = asyncio.Event()

    async def hang_later(_: pb.GenerateRequest, __: Any) -> None:
        if len(place.service.requests) > 10:
            hangs.set()
            await never.wait()

    hangs = asyncio.Event()
    place.service.behave = hang_later
    async with opened(place, replace(LOAD, plan=Plan(rate, 4, 60.0, None))) as run:
        task = asyncio.create_task(run.measure())
        await asyncio.wait_for(hangs.wait(), 30)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        record = run.record()
    assert task.cancelled()
    statuses = Counter(one.status for one in record.attempts)
    assert 1 <= statuses["ok"] <= 10  # the tenth answer may not have been read yet
    assert statuses["interrupted"] >= 1
    assert sum(statuses.values()) == run.sent
    assert record.sending_s <= 30
    await asyncio.wait_for(place.service.cancelled.wait(), 30)


async def test_a_record_says_how_long_requests_were_sent(place: Place) -> None:
    """By time it is the time; by number it ends with the last one, before its answer."""
    record = await measured(place, replace(LOAD, plan=Plan(50.0, 1, 0.4, None)))
    assert record.sending_s == 0.4

    async def linger(_: pb.GenerateRequest, __: Any) -> None:
        await asyncio.sleep(0.3)

    place.service.behave = linger
    record = await measured(place, replace(LOAD, plan=Plan(None, 4, 60.0, 4)))
    assert record.sending_s <= record.seconds - 0.3


async def test_nobody_there_is_told_at_once() -> None:
    """Within the connection's first attempt, not after a limit of time."""
    with pytest.raises(UnreachableError, match=r"no server answers at 127\.0\.0\.1:1\."):
        async with open_run("127.0.0.1:1", "a text", LOAD):
            pass


async def test_a_server_that_gives_no_tokens_says_why(place: Place) -> None:
    """Before anything is sent."""

    async def refuse(_: pb.TokenizeRequest, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "variant 'x' is unknown.")

    place.service.behave_tokenize = refuse
    with pytest.raises(RefusedError, match=r"not_found: variant 'x' is unknown\."):
        async with opened(place, replace(LOAD, variants=("x",))):
            pass
