"""Each status of the error table, over real gRPC, and that every method uses the same table."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from protos import inference_pb2 as pb
from server.catalog import BuildProgress, VariantState
from server.engine.messages import FailureCode, Timings
from server.errors import Status
from server.rpc.status import CODES, PUSHBACK

if TYPE_CHECKING:
    from tests.server.conftest import Bench

DOCS = Path(__file__).parents[3] / "docs" / "errors.md"
Code = grpc.StatusCode


async def read(call: Any, into: list[pb.GenerateResponse]) -> None:
    """Read a stream as far as it goes."""
    async for response in call:
        into.append(response)  # noqa: PERF401 - kept also when the stream fails


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call fails; streams are read first."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (read(call, []) if hasattr(call, "__aiter__") else call)
    return caught.value.code(), caught.value.details() or ""


def ids(*token_ids: int) -> pb.TokenIds:
    return pb.TokenIds(ids=token_ids)


INVALID = {
    "prompt: is not set": pb.GenerateRequest(),
    "text: is empty": pb.GenerateRequest(text=""),
    "text: has 1048577 bytes, and the limit is 1048576; shorten": pb.GenerateRequest(
        text="x" * (2**20 + 1)
    ),
    "text: has 134 tokens, which leaves no room in the 128": pb.GenerateRequest(text="\n\n1" * 67),
    "token_ids: is empty": pb.GenerateRequest(token_ids=ids()),
    "token_ids: 4096 is not in the vocabulary": pb.GenerateRequest(token_ids=ids(1, 4096)),
    "token_ids: has 128 tokens, which leaves no room in the 128 that variant 'baseline' "
    "holds; send at most 127": pb.GenerateRequest(token_ids=ids(*[9] * 128)),
    "token_ids: has 131073 ids, and the limit is 131072": pb.GenerateRequest(
        token_ids=ids(*[9] * 131_073)
    ),
    "routing_key: has 257 bytes": pb.GenerateRequest(text="x", routing_key="k" * 257),
    "sampling.top_p: 1.5 is above 1; use a value in (0, 1]": pb.GenerateRequest(
        text="x", sampling=pb.SamplingParameters(top_p=1.5)
    ),
    "sampling.temperature: nan is not a number": pb.GenerateRequest(
        text="x", sampling=pb.SamplingParameters(temperature=float("nan"))
    ),
    "sampling.stop[0]: is empty": pb.GenerateRequest(
        text="x", sampling=pb.SamplingParameters(stop=[""])
    ),
    "sampling.logit_bias[3]: inf is not finite": pb.GenerateRequest(
        text="x", sampling=pb.SamplingParameters(logit_bias={3: float("inf")})
    ),
    "sampling.max_tokens: 120 does not fit: 118 tokens are left behind a prompt of 10; "
    "use at most 118": pb.GenerateRequest(
        token_ids=ids(*[9] * 10), sampling=pb.SamplingParameters(max_tokens=120)
    ),
}


@pytest.mark.parametrize("message", INVALID)
async def test_an_invalid_request_is_refused_before_the_engine(
    bench: Bench, stub: Any, message: str
) -> None:
    """INVALID_ARGUMENT with field, problem and remedy, from both methods; no place is held."""
    for call in (stub.Generate, stub.Complete):
        code, details = await refusal(call(INVALID[message]))
        assert Code.INVALID_ARGUMENT is code
        assert details.startswith(message)
    assert bench.engine.submits == []
    assert bench.core._intake._admission.unfinished("baseline") == 0
    assert {Status.INVALID_ARGUMENT} == {record.status for record in bench.recorder.records}


async def test_a_request_beyond_the_cache_is_invalid(bench: Bench, stub: Any) -> None:
    """What could never fit into the variant's memory is refused, not left waiting for ever."""
    limits = replace(bench.catalog.views["baseline"].limits, kv_budget_tokens=50)
    bench.catalog.change("baseline", limits=limits)
    call = pb.GenerateRequest(
        token_ids=ids(*[9] * 30), sampling=pb.SamplingParameters(max_tokens=21)
    )
    code, details = await refusal(stub.Complete(call))
    assert Code.INVALID_ARGUMENT is code
    assert "use at most 20" in details


async def test_an_unknown_variant_is_not_found_everywhere(bench: Bench, stub: Any) -> None:
    """NOT_FOUND lists the known names, and telemetry never sees the caller's text."""
    calls = (
        stub.Generate(pb.GenerateRequest(text="x", variant="int9")),
        stub.Complete(pb.GenerateRequest(text="x", variant="int9")),
        stub.GetVariant(pb.GetVariantRequest(variant="int9")),
        stub.Tokenize(pb.TokenizeRequest(variant="int9")),
        stub.Detokenize(pb.DetokenizeRequest(variant="int9")),
    )
    for call in calls:
        code, details = await refusal(call)
        assert Code.NOT_FOUND is code
        assert details == "variant: 'int9' is unknown; use one of: baseline, int8, slow, broken."
    assert [(r.variant, r.status) for r in bench.recorder.records] == [("", Status.NOT_FOUND)] * 2


async def test_a_very_long_unknown_name_is_cut(stub: Any) -> None:
    """What callers send does not come back at full length."""
    _, details = await refusal(stub.GetVariant(pb.GetVariantRequest(variant="x" * 10**6)))
    assert len(details) < 300


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("slow", "it is building (stage quantize, 2 of 3, 40%, 12 s so far); try again later"),
        ("broken", "it is failed (the disk is full); use another variant"),
    ],
)
async def test_a_variant_that_does_not_serve_says_why(
    bench: Bench, stub: Any, name: str, words: str
) -> None:
    """UNAVAILABLE tells the state, and how far a build is."""
    progress = BuildProgress("quantize", 1, 3, 0.4, 12.0)
    bench.catalog.change("slow", progress=progress)
    for call in (
        stub.Complete(pb.GenerateRequest(text="x", variant=name)),
        stub.Tokenize(pb.TokenizeRequest(text="x", variant=name)),
        stub.Detokenize(pb.DetokenizeRequest(variant=name)),
    ):
        code, details = await refusal(call)
        assert Code.UNAVAILABLE is code
        assert words in details
    assert [(name, Status.UNAVAILABLE)] == [(r.variant, r.status) for r in bench.recorder.records]


async def test_traffic_without_a_ready_variant_is_unavailable(bench: Bench, stub: Any) -> None:
    """When none of the routed variants serves, the answer is about one of them."""
    bench.catalog.traffic = {"slow": 1.0}
    code, details = await refusal(stub.Complete(pb.GenerateRequest(text="x")))
    assert (code, "'slow'" in details) == (Code.UNAVAILABLE, True)


@pytest.mark.parametrize("state", [state for state in VariantState if state != "ready"])
async def test_no_state_but_ready_serves(bench: Bench, stub: Any, state: VariantState) -> None:
    """A variant with everything loaded still does not serve in any other state."""
    bench.catalog.change("baseline", state=state)
    code, _ = await refusal(stub.Complete(pb.GenerateRequest(text="x")))
    assert Code.UNAVAILABLE is code


async def test_a_full_queue_pushes_back_and_empties(bench: Bench, stub: Any) -> None:
    """Beyond slots + max_waiting: RESOURCE_EXHAUSTED with when to come back; then it works."""
    bench.engine.gate = threading.Semaphore(0)
    calls = [stub.Complete(pb.GenerateRequest(text="x")) for _ in range(6)]
    await bench.until(lambda: len(bench.engine.submits) == 6)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Complete(pb.GenerateRequest(text="x"))
    assert Code.RESOURCE_EXHAUSTED is caught.value.code()
    assert "(4 running, 2 waiting); try again later" in str(caught.value.details())
    pushback = dict(caught.value.trailing_metadata())[PUSHBACK]
    assert 50 <= int(pushback) <= 10_000
    # The other variant has places of its own.
    other = stub.Complete(pb.GenerateRequest(text="x", variant="int8"))

    bench.engine.gate.release(1000)
    await asyncio.gather(*calls, other)
    await stub.Complete(pb.GenerateRequest(text="x"))
    statuses = [record.status for record in bench.recorder.records]
    assert (statuses.count(Status.OK), statuses.count(Status.RESOURCE_EXHAUSTED)) == (8, 1)


async def test_a_draining_server_finishes_and_refuses(bench: Bench, stub: Any) -> None:
    """New requests are UNAVAILABLE while those that run are finished."""
    bench.engine.gate = threading.Semaphore(0)
    running = stub.Complete(pb.GenerateRequest(text="x"))
    await bench.until(lambda: bench.engine.submits)
    bench.core.drain()
    code, details = await refusal(stub.Complete(pb.GenerateRequest(text="x")))
    assert (code, "draining" in details) == (Code.UNAVAILABLE, True)
    idle = asyncio.create_task(bench.core.wait_idle())
    await asyncio.sleep(0)
    assert not idle.done()
    bench.engine.gate.release(1000)
    assert (await running).text == "x"
    await idle


async def test_ending_all_ends_every_stream_unavailable(bench: Bench, stub: Any) -> None:
    """When the time to drain is over, streams hear why, and the engine is told to stop."""
    bench.engine.gate = threading.Semaphore(0)
    calls = [stub.Complete(pb.GenerateRequest(text="x")) for _ in range(5)]
    await bench.until(lambda: len(bench.engine.submits) == 5)
    assert bench.core.end_all("The server is stopping.") == 5
    for call in calls:
        assert await refusal(call) == (Code.UNAVAILABLE, "The server is stopping.")
    await bench.until(lambda: not (bench.engine.running or bench.engine.waiting))
    assert bench.core._intake._admission.unfinished("baseline") == 0
    assert [record.status for record in bench.recorder.records] == [Status.UNAVAILABLE] * 5


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (FailureCode.INTERNAL, Code.INTERNAL, "log_id=log-1"),
        (FailureCode.UNAVAILABLE, Code.UNAVAILABLE, "a secret of the engine"),
        (FailureCode.DEADLINE_EXCEEDED, Code.DEADLINE_EXCEEDED, "passed after 1 tokens"),
    ],
)
async def test_failures_of_the_engine_end_the_stream(
    bench: Bench, stub: Any, failure: FailureCode, code: grpc.StatusCode, words: str
) -> None:
    """What was generated is sent, then the status; INTERNAL keeps its detail for the log."""
    bench.engine.script = lambda _: [[70], [71]]
    bench.engine.failures["r1"] = failure
    call = stub.Generate(pb.GenerateRequest(text="x"))
    responses: list[pb.GenerateResponse] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(call, responses)
    assert code is caught.value.code()
    assert words in str(caught.value.details())
    assert [list(response.token_ids) for response in responses] == [[70]]
    internal = failure is FailureCode.INTERNAL
    assert internal == ("secret" not in str(caught.value.details()) and bool(bench.log))
    if internal:
        assert (
            bench.log[0]["log_id"],
            bench.log[0]["error"],
        ) == ("log-1", "a secret of the engine")
    await bench.until(lambda: bench.recorder.records)
    (record,) = bench.recorder.records
    assert (failure.value, 1, Timings(0.25, 0.5, 0.75)) == (
        record.status.value,
        record.completion_tokens,
        record.timings,
    )


@pytest.mark.parametrize("method", ["Generate", "Complete", "ListVariants", "GetVariant"])
async def test_an_unexpected_error_is_internal_without_detail(
    bench: Bench, stub: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A bug of ours: the caller gets a log id, the log gets the exception."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("a secret of the code")

    monkeypatch.setattr(bench.core._selection, "named", broken)
    requests = {
        "ListVariants": pb.ListVariantsRequest(),
        "GetVariant": pb.GetVariantRequest(),
    }
    call = getattr(stub, method)(requests.get(method, pb.GenerateRequest(text="x")))
    code, details = await refusal(call)
    assert Code.INTERNAL is code
    assert details == "internal error; the server's log has the details under log_id=log-1"
    assert "a secret of the code" in str(bench.log[0]["exc_info"])


async def test_too_large_a_message_is_refused_by_grpc(stub: Any) -> None:
    """Five MiB never reach a method."""
    code, _ = await refusal(stub.Complete(pb.GenerateRequest(text="x" * (5 << 20))))
    assert Code.RESOURCE_EXHAUSTED is code


async def test_a_long_reason_does_not_break_the_clients_header_limit(
    bench: Bench, stub: Any
) -> None:
    """Details are cut: a header beyond the client's limit would hide the status itself."""
    bench.catalog.change("broken", error="東" * 50_000)
    call = stub.Complete(pb.GenerateRequest(text="x", variant="broken"))
    code, details = await refusal(call)
    assert Code.UNAVAILABLE is code
    assert len(details.encode()) <= 2000


def test_the_documented_table_has_every_status() -> None:
    """docs/errors.md lists the statuses that are used, and no others."""
    documented = {
        line.split("`")[1]
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    }
    assert {code.name for code in CODES.values()} == documented
    assert set(Status) - {Status.OK} == set(CODES)
