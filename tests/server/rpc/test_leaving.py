"""Callers that cancel, disconnect or run out of time: their slots come free, whatever the state."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from server.engine.messages import FinishReason
from server.errors import Status

if TYPE_CHECKING:
    from tests.server.conftest import Bench

pytestmark = pytest.mark.timeout(60)

LONG = [[70 + number % 50] for number in range(120)]
REQUEST = pb.GenerateRequest(text="x")
TIME = 2.0  # until a deadline that a busy machine still reaches the engine in


def hold(bench: Bench, steps: int = 0) -> None:
    """Let the engine do this many steps and then wait."""
    bench.engine.script = lambda _: LONG
    bench.engine.gate = threading.Semaphore(steps)


async def all_free(bench: Bench) -> None:
    """The engine, the core and admission know of no request any more."""
    await bench.until(
        lambda: (
            not bench.engine.running
            and not bench.engine.waiting
            and bench.core.unfinished == 0
            and bench.core._intake._admission.unfinished("baseline") == 0
        )
    )


async def _read(call: Any) -> None:
    async for _ in call:
        pass


async def one_record(bench: Bench, status: Status) -> None:
    await bench.until(lambda: bench.recorder.records)
    assert [status] == [record.status for record in bench.recorder.records]


@pytest.mark.parametrize("steps", [0, 1, 5], ids=["prefill", "first token", "decoding"])
@pytest.mark.parametrize("method", ["Generate", "Complete"])
async def test_a_cancelled_call_frees_its_slot(
    bench: Bench, stub: Any, method: str, steps: int
) -> None:
    """The engine is told once, and telemetry hears CANCELLED once."""
    hold(bench, steps)
    call = getattr(stub, method)(REQUEST)
    await bench.until(lambda: bench.engine.running or bench.engine.waiting)
    await bench.until(lambda: bench.engine.steps == steps)
    call.cancel()
    await all_free(bench)
    assert [cancel.finish for cancel in bench.engine.cancels] == [FinishReason.CANCELLED]
    await one_record(bench, Status.CANCELLED)


async def test_a_cancelled_call_frees_its_place_in_the_queue(bench: Bench, stub: Any) -> None:
    """Requests that wait for a slot are cancelled as well as those that run."""
    hold(bench, 1)
    calls = [stub.Generate(REQUEST) for _ in range(6)]
    await bench.until(lambda: len(bench.engine.running) == 4 and len(bench.engine.waiting) == 2)
    for call in calls:
        call.cancel()
    await all_free(bench)
    assert {"r1", "r2", "r3", "r4", "r5", "r6"} == {c.request_id for c in bench.engine.cancels}


async def test_a_call_cancelled_while_its_text_is_encoded_never_reaches_the_engine(
    bench: Bench, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving during the encoding gives the place back."""
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_: Any, **__: Any) -> tuple[int, ...]:
        begun.set()
        go_on.wait(10)
        return (70,)

    monkeypatch.setattr(tokenizer, "encode", slow)
    call = stub.Complete(pb.GenerateRequest(text="long " * 1000))
    await bench.until(begun.is_set)
    assert bench.core._intake._admission.unfinished("baseline") == 1
    call.cancel()
    await all_free(bench)
    go_on.set()
    assert bench.engine.submits == []
    await one_record(bench, Status.CANCELLED)


async def test_a_client_that_vanishes_frees_its_slots(bench: Bench, port: int) -> None:
    """Closing the connection in the middle of streams is as good as cancelling."""
    hold(bench)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    stub: Any = pb_grpc.InferenceStub(channel)
    calls = [stub.Generate(REQUEST) for _ in range(3)]
    await bench.until(lambda: len(bench.engine.running) == 3)
    assert bench.engine.gate is not None
    bench.engine.gate.release(3)
    await calls[0].read()
    await channel.close(None)
    await all_free(bench)
    await bench.until(lambda: len(bench.recorder.records) == 3)
    assert {Status.CANCELLED} == {record.status for record in bench.recorder.records}


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("method", ["Generate", "Complete"])
async def test_a_deadline_frees_the_slot(bench: Bench, stub: Any, method: str, steps: int) -> None:
    """The client gets DEADLINE_EXCEEDED, the slot comes free, telemetry hears why."""
    hold(bench, steps)
    begun = time.monotonic()
    call = getattr(stub, method)(REQUEST, timeout=TIME)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if method == "Complete" else _read(call))
    assert grpc.StatusCode.DEADLINE_EXCEEDED is caught.value.code()
    await all_free(bench)
    deadline = bench.engine.submits[0].deadline_s
    assert deadline is not None
    assert abs(deadline - begun - TIME) < 1.0
    await one_record(bench, Status.DEADLINE_EXCEEDED)


async def test_no_deadline_means_none(bench: Bench, stub: Any) -> None:
    """A call without a deadline has none in the engine."""
    await stub.Complete(REQUEST)
    assert bench.engine.submits[0].deadline_s is None


async def test_a_reader_that_stops_reading_holds_up_nobody(bench: Bench, port: int) -> None:
    """While one stream is not read, others finish; and the engine finishes that one as well."""
    bench.engine.script = lambda _: LONG
    # A window of a few bytes: what the client does not read stays on the server.
    options = (("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        stub: Any = pb_grpc.InferenceStub(channel)
        idle = stub.Generate(REQUEST)
        await bench.until(lambda: bench.engine.submits)
        for _ in range(3):
            assert (await stub.Complete(REQUEST)).finish.usage.completion_tokens == 120
        await bench.until(lambda: not bench.engine.running)
        assert bench.core._intake._admission.unfinished("baseline") == 1
        assert len([response async for response in idle]) == 120
    await all_free(bench)


@pytest.mark.parametrize("method", ["Generate", "Chat"])
async def test_a_reader_that_leaves_unread_answers_has_left(
    bench: Bench, port: int, method: str
) -> None:
    """That a message cannot be sent any more is no error of the server, and no word in its log."""
    bench.engine.script = lambda _: LONG
    options = (("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0))
    request = REQUEST
    if method == "Chat":
        request = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="x")])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = getattr(pb_grpc.InferenceStub(channel), method)(request)
        await call.read()
        await bench.until(lambda: bench.engine.submits and not bench.engine.running)
        call.cancel()
        await all_free(bench)
    await one_record(bench, Status.CANCELLED)
    assert bench.log == []


async def test_a_storm_of_cancels_leaves_nothing_behind(bench: Bench, stub: Any) -> None:
    """Calls cancelled at any moment, again and again: every request ends exactly once."""
    bench.engine.script = lambda _: LONG
    count = 120

    async def come_and_go(number: int) -> None:
        call = stub.Generate(REQUEST)
        await asyncio.sleep(number % 7 * 0.003)
        call.cancel()

    for start in range(0, count, 6):
        await asyncio.gather(*(come_and_go(start + number) for number in range(6)))
    await all_free(bench)
    answered = await stub.Complete(REQUEST)
    assert answered.finish.usage.completion_tokens == 120
    # A call cancelled before it was sent never was a request; each one that was has one record.
    submitted = len(bench.engine.submits)
    await bench.until(lambda: len(bench.recorder.records) >= submitted)
    statuses = {record.status for record in bench.recorder.records}
    assert statuses <= {Status.OK, Status.CANCELLED, Status.RESOURCE_EXHAUSTED}
    refused = [r for r in bench.recorder.records if r.status is Status.RESOURCE_EXHAUSTED]
    unsent = [r for r in bench.recorder.records if not r.prompt_tokens]
    assert submitted == len(bench.recorder.records) - len({*map(id, refused), *map(id, unsent)})
