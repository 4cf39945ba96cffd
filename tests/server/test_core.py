"""The core without any face: leaving, late events, draining, places."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from server.account import Account
from server.calls import GenerateCall, Output
from server.engine.messages import (
    Event,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Generated,
    Timings,
    Token,
    Usage,
)
from server.errors import (
    CancelledByEngineError,
    InvalidRequestError,
    OverloadedError,
    Status,
    UnavailableError,
)
from server.mailbox import Mailroom
from server.telemetry import Telemetry

if TYPE_CHECKING:
    from tests.server.conftest import Bench, Recorder

NO_USAGE, NO_TIMINGS = Usage(0, 0, 0), Timings(0.0, 0.0, 0.0)
SIX = [[token] for token in range(70, 76)]


def call(bench: Bench, prompt: str = "x") -> GenerateCall:
    return GenerateCall(prompt, received_s=bench.core.clock())


async def test_leaving_early_cancels_in_the_engine(bench: Bench) -> None:
    """Closing the iterator after the first output frees the slot and counts as cancelled."""
    bench.engine.script = lambda _: SIX
    bench.engine.gate = threading.Semaphore(1)
    async with aclosing(bench.core.generate(call(bench))) as outputs:
        await anext(outputs)
    await bench.until(lambda: not bench.engine.running)
    assert [cancel.finish for cancel in bench.engine.cancels] == [FinishReason.CANCELLED]
    (record,) = bench.recorder.records
    assert (record.status, record.completion_tokens) == (Status.CANCELLED, 1)


async def test_leaving_after_the_finish_is_a_good_end(bench: Bench) -> None:
    """A face that stops reading at the finish has had it all."""
    bench.engine.script = lambda _: SIX
    async with aclosing(bench.core.generate(call(bench))) as outputs:
        async for output in outputs:
            if output.finish is not None:
                break
    assert [record.status for record in bench.recorder.records] == [Status.OK]
    assert bench.engine.cancels == []


async def test_draining_waits_for_whoever_still_reads(bench: Bench) -> None:
    """The engine is done long before a slow reader; cut then, it is not the one who left."""
    bench.engine.script = lambda _: SIX
    for cut, status in ((False, Status.OK), (True, Status.UNAVAILABLE)):
        outputs = bench.core.generate(call(bench))
        await anext(outputs)
        await bench.until(lambda: not bench.engine.running)
        bench.core.drain()
        idle = asyncio.create_task(bench.core.wait_idle())
        await asyncio.sleep(0)
        assert not idle.done()
        if cut:
            bench.core.end_all("The server is stopping.")
            await outputs.aclose()
        else:
            assert len([output async for output in outputs]) == len(SIX) - 1
            bench.core._intake.draining = False
        await idle
        assert bench.recorder.records[-1].status is status


async def test_a_deadline_that_is_near_explains_a_cancel(bench: Bench) -> None:
    """A caller gives up at its own deadline, a moment before ours."""
    bench.engine.script = lambda _: SIX
    for left, status in ((0.01, Status.DEADLINE_EXCEEDED), (60.0, Status.CANCELLED)):
        bench.engine.gate = threading.Semaphore(1)
        now = bench.core.clock()
        generate = bench.core.generate(GenerateCall("x", now, deadline_s=now + 0.2 + left))
        async with aclosing(generate) as outputs:
            await anext(outputs)
            await asyncio.sleep(0.17)
        assert status is bench.recorder.records[-1].status


async def test_a_cancel_that_nobody_asked_for_is_an_error(bench: Bench) -> None:
    """The engine says CANCELLED to a caller who is still there: not a good end."""
    bench.engine.script = lambda _: SIX
    bench.engine.gate = threading.Semaphore(0)
    outputs = bench.core.generate(call(bench))
    waiting = asyncio.create_task(anext(outputs))
    await bench.until(lambda: bench.engine.submits)
    bench.core.deliver([Finished("r1", FinishReason.CANCELLED, NO_USAGE, NO_TIMINGS)])
    with pytest.raises(CancelledByEngineError):
        await waiting
    assert [record.status for record in bench.recorder.records] == [Status.CANCELLED]


async def test_a_whole_answer_survives_a_failure_after_it(bench: Bench) -> None:
    """The stop string was there: what the engine does until it hears of it does not matter."""
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode("one stop two")
    bench.engine.gate = threading.Semaphore(0)
    sampling = call(bench).sampling.__class__(stop=["stop"])
    outputs = bench.core.generate(GenerateCall("x", 0.0, sampling=sampling))
    reading = asyncio.create_task(_read(outputs))
    await bench.until(lambda: bench.engine.submits)
    bench.core.deliver([Generated("r1", tuple(map(Token, ids)), 0.0)])
    failed = Failed("r1", FailureCode.INTERNAL, "late", Usage(1, 9, 0), NO_TIMINGS)
    bench.core.deliver([failed])
    text, last = await reading
    assert text == "one "
    assert last.finish is not None
    assert (last.finish.stop_string, last.finish.reason) == ("stop", FinishReason.STOP)


async def _read(outputs: Any) -> tuple[str, Output]:
    read = [output async for output in outputs]
    return "".join(output.text for output in read), read[-1]


async def test_draining_refuses_what_is_being_encoded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that was not handed over when draining began is refused, its place given back."""
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    go_on = threading.Event()

    def slow(*_: Any, **__: Any) -> tuple[int, ...]:
        go_on.wait(10)
        return (70,)

    monkeypatch.setattr(tokenizer, "encode", slow)
    waiting = asyncio.create_task(anext(bench.core.generate(call(bench, "long " * 1000))))
    await bench.until(lambda: bench.core._intake._admission.unfinished("baseline"))
    bench.core.drain()
    go_on.set()
    with pytest.raises(UnavailableError, match="draining"):
        await waiting
    assert bench.core._intake._admission.unfinished("baseline") == 0
    assert bench.engine.submits == []


async def test_events_of_others_are_ignored(bench: Bench) -> None:
    """Events of requests that were ended here disturb nobody."""
    final = Finished("r999", FinishReason.STOP, NO_USAGE, NO_TIMINGS)
    bench.core.deliver([Generated("r999", (Token(1),), 0.0), final])
    bench.engine.script = lambda _: SIX
    outputs = [output async for output in bench.core.generate(call(bench))]
    assert len(SIX) == len(outputs)


def test_events_after_the_loop_has_gone_are_dropped() -> None:
    """The engine's last words when the process ends are no error."""

    async def build() -> Mailroom:
        return Mailroom()

    room = asyncio.run(build())
    room.deliver([Finished("r1", FinishReason.STOP, NO_USAGE, NO_TIMINGS)])


async def test_a_step_is_one_hop_however_many_requests_it_served() -> None:
    """All events of a step cross to the loop in one call, from any thread."""
    loop = asyncio.get_running_loop()
    room = Mailroom()
    ended: list[int] = []
    boxes = [room.open([f"r{n}"], lambda _, n=n: ended.append(n)) for n in range(3)]  # type: ignore[misc]
    hops = 0
    hop = loop.call_soon_threadsafe

    def counting(*arguments: Any) -> Any:
        nonlocal hops
        hops += 1
        return hop(*arguments)

    events: list[Event] = []
    for number in range(3):
        events.append(Generated(f"r{number}", (Token(number),), 0.0))
        events.append(Finished(f"r{number}", FinishReason.STOP, NO_USAGE, NO_TIMINGS))
    loop.call_soon_threadsafe = counting  # type: ignore[method-assign, assignment]
    try:
        thread = threading.Thread(target=room.deliver, args=(events,))
        thread.start()
        thread.join()
    finally:
        loop.call_soon_threadsafe = hop  # type: ignore[method-assign]
    steps = [await box.get() for box in boxes]
    assert hops == 1
    assert [(step.tokens[0].token_id, step.final is not None) for step in steps] == [
        (0, True),
        (1, True),
        (2, True),
    ]
    assert ended == [0, 1, 2]


async def test_an_unread_answer_keeps_its_place(bench: Bench) -> None:
    """Answers that nobody reads are kept, so they are bounded; how long is not learnt from."""
    bench.engine.script = lambda _: SIX
    unread = [bench.core.generate(call(bench)) for _ in range(6)]
    for outputs in unread:
        await anext(outputs)
    await bench.until(lambda: not (bench.engine.running or bench.engine.waiting))
    bench.core._intake._clock = lambda: bench.core.clock() + 1000
    for _ in range(2):
        with pytest.raises(OverloadedError) as caught:
            await anext(bench.core.generate(call(bench)))
        assert caught.value.retry_after_s < 0.5
        await unread.pop().aclose()
        unread.append(bench.core.generate(call(bench)))
        await anext(unread[-1])
        await bench.until(lambda: not (bench.engine.running or bench.engine.waiting))
    for outputs in unread:
        await outputs.aclose()
    assert bench.core._intake._admission.unfinished("baseline") == 0


async def test_tokens_are_counted_while_a_stream_runs(bench: Bench) -> None:
    """Beside engine time, which grows with each step, nothing else gives a cost per token."""
    telemetry = Telemetry("demo")
    telemetry.add_variant("baseline")
    bench.core._observer = telemetry
    bench.engine.script = lambda _: [[70, 71], [72], [73]]
    bench.engine.gate = threading.Semaphore(0)

    def counted(what: str) -> float | None:
        labels = {"model": "demo", "variant": "baseline"}
        return telemetry.registry.get_sample_value(f"inference_{what}_tokens_total", labels)

    outputs = bench.core.generate(call(bench))
    first = asyncio.create_task(anext(outputs))
    await bench.until(lambda: bench.engine.submits)
    assert (counted("prompt"), counted("generated")) == (len(bench.engine.submits[0].prompt), 0)
    bench.engine.gate.release(2)
    await first
    assert counted("generated") == 2
    await anext(outputs)
    assert counted("generated") == 3
    await outputs.aclose()
    assert (counted("prompt"), counted("generated")) == (len(bench.engine.submits[0].prompt), 3)


def test_gaps_are_divided_over_the_tokens_of_a_step(recorder: Recorder) -> None:
    """One first token; afterwards one observation per token; nothing for empty messages."""
    times = iter([11.0, 12.0, 15.0, 20.0])
    call = GenerateCall("x", received_s=10.0)
    account = Account(recorder, lambda: next(times), call)
    account.variant = "a"
    for count in (0, 1, 2, 0, 3):
        account.handed_over(count)
    account.status = Status.OK
    account.close()
    assert recorder.first == [("a", 1.0)]
    assert recorder.gaps == [("a", 0.5, 2), ("a", 1.0, 3)]
    assert [record.duration_s for record in recorder.records] == [10.0]


async def test_long_texts_leave_the_loop_free(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long texts are encoded on another thread, short ones at once."""
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    threads: list[str] = []

    def encode(*_: Any, **__: Any) -> tuple[int, ...]:
        threads.append(threading.current_thread().name)
        return (70,)

    monkeypatch.setattr(tokenizer, "encode", encode)
    await bench.core.tokenize("", "short")
    await bench.core.tokenize("", "long " * 1000)
    short, long = threads
    assert (threading.main_thread().name, True) == (short, long != short)


async def test_a_text_of_too_many_tokens_is_refused(bench: Bench) -> None:
    """The limit on tokens holds for texts as well as for ids."""
    object.__setattr__(bench.core.limits, "max_prompt_tokens", 5)
    with pytest.raises(InvalidRequestError, match="tokens, and the limit is 5; shorten the"):
        await anext(bench.core.generate(call(bench, "one two three four five six")))
    assert bench.core._intake._admission.unfinished("baseline") == 0


async def test_a_text_with_a_token_that_the_model_lacks_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer may have more tokens than the model has rows; one of them would end the step."""
    view = bench.catalog.views["baseline"]
    assert view.tokenizer is not None
    assert view.manifest is not None
    last = view.manifest.graph.vocab_size - 1
    monkeypatch.setattr(view.tokenizer, "encode", lambda *_, **__: (70, last))
    async with aclosing(bench.core.generate(call(bench))) as outputs:
        await anext(outputs)
    monkeypatch.setattr(view.tokenizer, "encode", lambda *_, **__: (70, last + 1))
    with pytest.raises(InvalidRequestError, match=r"^text: contains .* does not have"):
        await anext(bench.core.generate(call(bench)))
    assert len(bench.engine.submits) == 1
    assert bench.core._intake._admission.unfinished("baseline") == 0


async def test_long_texts_that_wait_are_bounded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of long texts is pushed back; short ones and later ones are answered."""
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    go_on = threading.Event()

    def encode(text: str, **_: Any) -> tuple[int, ...]:
        if len(text) > 100:
            go_on.wait(10)
        return (70,)

    monkeypatch.setattr(tokenizer, "encode", encode)
    flood = [asyncio.create_task(bench.core.tokenize("", "long " * 1000)) for _ in range(128)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="128 long texts wait"):
        await bench.core.tokenize("", "long " * 1000)
    assert len(await bench.core.tokenize("", "short")) == 1
    go_on.set()
    await asyncio.gather(*flood)
    assert len(await bench.core.tokenize("", "long " * 1000)) == 1
