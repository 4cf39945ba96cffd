"""Each call's id comes back in its trailing metadata, whatever becomes of the call."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from server.access import Access, Right, Token
from server.catalog import VariantLimits
from server.request_context import REQUEST_ID, current
from server.rpc.health import HealthService
from server.rpc.server import create_server
from server.rpc.status import PUSHBACK

if TYPE_CHECKING:
    from tests.server.conftest import Bench

OFFERED = ((REQUEST_ID, "req-1"),)
REQUEST = pb.GenerateRequest(text="x", sampling=pb.SamplingParameters(max_tokens=2))


async def trailing(call: Any) -> dict[str, str]:
    return dict(await call.trailing_metadata())


async def test_whole_answers_and_streams_have_it(bench: Bench, stub: Any) -> None:
    """The caller's own, or a new one for each."""
    call = stub.Complete(REQUEST, metadata=OFFERED)
    await call
    assert (await trailing(call))[REQUEST_ID] == "req-1"
    made = []
    for _ in range(2):
        call = stub.Generate(REQUEST)
        assert [response async for response in call]
        made.append((await trailing(call))[REQUEST_ID])
    assert len({*made, "req-1"}) == 3
    assert [record.context.request_id for record in bench.recorder.records] == ["req-1", *made]


async def test_refusals_have_it_beside_what_they_say(bench: Bench, stub: Any) -> None:
    """An unknown variant, and a full queue with its push-back."""
    call = stub.Complete(pb.GenerateRequest(text="x", variant="nobody"), metadata=OFFERED)
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    assert await trailing(call) == {REQUEST_ID: "req-1"}
    limits = VariantLimits(max_length=128, slots=1, kv_budget_tokens=512, max_waiting=0)
    bench.catalog.change("int8", limits=limits)
    bench.engine.gate = threading.Semaphore(0)
    running = stub.Generate(pb.GenerateRequest(text="x", variant="int8"))
    await bench.until(lambda: bench.engine.running)
    call = stub.Generate(pb.GenerateRequest(text="x", variant="int8"), metadata=OFFERED)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        [response async for response in call]
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert set(await trailing(call)) == {REQUEST_ID, PUSHBACK}
    running.cancel()


async def test_who_has_no_right_has_an_id(bench: Bench) -> None:
    """The guard stands behind it: whoever asks why can be answered."""
    access = Access([Token.of("somebody", "s" * 32, (Right.GENERATE,))])
    server, port = create_server(
        bench.core, HealthService(), host="127.0.0.1", port=0, access=access
    )
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = pb_grpc.InferenceStub(channel)
        for call in (
            stub.Complete(REQUEST, metadata=OFFERED),
            stub.Generate(REQUEST, metadata=OFFERED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await (call if hasattr(call, "__await__") else anext(aiter(call)))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert await trailing(call) == {REQUEST_ID: "req-1"}
    await server.stop(0)


async def test_an_error_of_ours_is_logged_in_the_request(
    bench: Bench, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the log says of a failure is found by the id that the caller has."""
    seen = []
    monkeypatch.setattr(bench.core._log, "error", lambda *_, **__: seen.append(current()))
    monkeypatch.setattr(bench.core, "variants", lambda: 1 / 0)
    call = stub.ListVariants(pb.ListVariantsRequest(), metadata=OFFERED)
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    assert [context.request_id for context in seen] == ["req-1"]


async def test_requests_of_one_stream_are_told_apart(
    bench: Bench, channel: grpc.aio.Channel
) -> None:
    """Each is the stream's id and its number."""
    stub: Any = oip_grpc.GRPCInferenceServiceStub(channel)
    tensor = oip.ModelInferRequest.InferInputTensor(
        name="text_input",
        datatype="BYTES",
        shape=[1],
        contents=oip.InferTensorContents(bytes_contents=[b"x"]),
    )
    request = oip.ModelInferRequest(model_name="int8", inputs=[tensor])
    call = stub.ModelStreamInfer(iter([request, request]), metadata=OFFERED)
    assert len([response async for response in call]) == 2
    assert (await trailing(call))[REQUEST_ID] == "req-1"
    ids = {record.context.request_id for record in bench.recorder.records}
    assert ids == {"req-1/1", "req-1/2"}
