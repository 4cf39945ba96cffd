"""Spans: their shapes, what is never in them, and that sending them is nobody's business."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from server.engine.messages import FailureCode, Timings
from server.errors import Status
from server.http.application import OpenAI
from server.http.request_ids import RequestIds
from server.observer import RequestRecord
from server.request_context import RequestContext
from server.rpc.health import HealthService
from server.rpc.server import create_server
from server.tracing.settings import (
    TracingError,
    TracingSettings,
    open_tracing,
    tracing_settings,
)
from server.tracing.spans import RequestSpans
from server.tracing.tracing import Tracing, _resource
from tests.server.conftest import Recorder

if TYPE_CHECKING:
    from tests.server.conftest import Bench

TRACE, CALLER = "ab" * 16, "cd" * 8
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
UNSAMPLED = f"00-{TRACE}-{CALLER}-00"
TO_NOWHERE = TracingSettings("http://127.0.0.1:1", 1.0)
SECRETS = ("the secret prompt", "secret stop", "secret word", "secret of the engine")
PROMPT = SECRETS[0]


@pytest.fixture
def memory() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def tracing(memory: InMemorySpanExporter) -> AsyncIterator[Tracing]:
    tracing = Tracing(TO_NOWHERE, "demo", memory)
    yield tracing
    await tracing.close()


@pytest.fixture
def recorder(tracing: Tracing) -> Recorder:
    """The bench's observer, which makes spans besides."""

    class Traced(Recorder):
        def finished(self, record: RequestRecord) -> None:
            super().finished(record)
            tracing.spans.finished(record)

    return Traced()


@pytest.fixture
async def channel(bench: Bench, tracing: Tracing) -> AsyncIterator[grpc.aio.Channel]:
    server, port = create_server(
        bench.core, HealthService(), host="127.0.0.1", port=0, tracing=tracing.methods
    )
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return pb_grpc.InferenceStub(channel)


@pytest.fixture
async def http(bench: Bench, tracing: Tracing) -> AsyncIterator[httpx.AsyncClient]:
    application = RequestIds(tracing.application(OpenAI(bench.core, started=0).application()))
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


Spans = dict[str, ReadableSpan]
Read = Callable[[], Awaitable[Spans]]


@pytest.fixture
def spans(tracing: Tracing, memory: InMemorySpanExporter) -> Read:
    """What was exported, by name; a name that is there twice is an error."""

    async def read() -> Spans:
        async with asyncio.timeout(10):
            while True:  # a caller hears of its answer before the server's own span has ended
                tracing.flush()
                found = memory.get_finished_spans()
                ids = {span.context.span_id for span in found if span.context}
                parents = {span.parent.span_id for span in found if span.parent}
                if parents <= {*ids, int(CALLER, 16)}:
                    break
                await asyncio.sleep(0.01)
        named = {span.name: span for span in found}
        assert len(named) == len(found)
        written = "".join(span.to_json() for span in found)
        assert not any(secret in written for secret in SECRETS)
        assert not any(span.events or span.status.description for span in found)
        return named

    return read


def tree(spans: Spans) -> dict[str, str]:
    """Each span's parent, by name; the caller's span is ``caller``."""
    names = {span.context.span_id: name for name, span in spans.items() if span.context}
    names[int(CALLER, 16)] = "caller"
    return {name: names[span.parent.span_id] for name, span in spans.items() if span.parent}


def attributes(span: ReadableSpan, *namespaces: str) -> dict[str, Any]:
    return {
        name: value
        for name, value in (span.attributes or {}).items()
        if name.startswith(namespaces)
    }


async def test_a_stream_is_a_tree_below_the_callers_span(
    bench: Bench, stub: Any, spans: Read
) -> None:
    """The caller's trace, one server span, one of the request, and its phases one after another."""
    bench.engine.script = lambda _: [[70], [71], [72]]
    request = pb.GenerateRequest(
        text=PROMPT,
        sampling=pb.SamplingParameters(
            max_tokens=3, temperature=0.5, top_k=7, seed=5, stop=["secret stop"],
            bad_words=["secret word"],
        ),
    )  # fmt: skip
    metadata = (("traceparent", TRACEPARENT), ("x-request-id", "req-1"))
    assert [response async for response in stub.Generate(request, metadata=metadata)]
    found = await spans()
    server, whole = "/inference_unlimited.v1.Inference/Generate", "text_completion routed"
    phases = ("queue", "prefill", "decode", "stream")
    assert tree(found) == {server: "caller", whole: server, **dict.fromkeys(phases, whole)}
    assert {span.context.trace_id for span in found.values() if span.context} == {int(TRACE, 16)}
    assert found[server].kind is SpanKind.SERVER
    assert attributes(found[server], "rpc.") == {
        "rpc.system": "grpc",
        "rpc.service": "inference_unlimited.v1.Inference",
        "rpc.method": "Generate",
        "rpc.grpc.status_code": 0,
    }
    (record,) = bench.recorder.records
    manifest = bench.catalog.views["baseline"].manifest
    assert manifest is not None
    assert attributes(found[whole], "gen_ai.", "inference_unlimited.", "error.") == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "inference_unlimited",
        "gen_ai.request.model": "routed",
        "gen_ai.response.model": "baseline",
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 7,
        "gen_ai.request.seed": 5,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 1,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.response.time_to_first_chunk": record.first_token_s,
        "inference_unlimited.model": "demo",
        "inference_unlimited.variant": "baseline",
        "inference_unlimited.artifact": manifest.digest,
        "inference_unlimited.request_id": "req-1",
    }
    assert record.context.trace_id == TRACE


async def test_phases_have_the_engines_times(tracing: Tracing, spans: Read) -> None:
    """One after another from when the engine got the request, and none outside of it."""
    tracer = tracing.spans._tracer
    parent = tracer.start_span("caller")
    context = RequestContext("req-1", TRACE, trace.set_span_in_context(parent))
    second = 1_000_000_000
    made = RequestSpans(tracer, "demo", wall_ns=lambda: 110 * second)
    made.finished(
        RequestRecord(
            "int8", Status.OK, 10.0, 7, 4, timings=Timings(1.0, 2.0, 3.0), submitted_s=0.5,
            first_token_s=3.75, last_token_s=99.0, context=context,
        )
    )  # fmt: skip
    parent.end()
    times = {
        name: ((span.start_time or 0) / second, (span.end_time or 0) / second)
        for name, span in (await spans()).items()
        if name != "caller"
    }
    assert times == {
        "text_completion routed": (100.0, 110.0),
        "queue": (100.5, 101.5),
        "prefill": (101.5, 103.5),
        "decode": (103.5, 106.5),
        "stream": (103.75, 110.0),  # told too late, and so cut
    }


async def test_a_conversation_over_http(bench: Bench, http: httpx.AsyncClient, spans: Read) -> None:
    """The same tree below an HTTP span whose name is a route; no span per part of the body."""
    bench.engine.script = lambda _: [[70], [71]]
    content = {
        "model": "int8",
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "max_tokens": 2,
        "n": 1,
    }
    answer = await http.post(
        "/v1/chat/completions?the+secret+prompt=1",
        json=content,
        headers={"traceparent": TRACEPARENT, "user-agent": PROMPT},
    )
    assert answer.status_code == 200
    assert "x-request-id" in answer.headers
    found = await spans()
    server, whole = "POST /v1/chat/completions", "chat int8"
    phases = ("queue", "prefill", "decode", "stream")
    assert tree(found) == {server: "caller", whole: server, **dict.fromkeys(phases, whole)}
    assert attributes(found[server], "http.") == {
        "http.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.scheme": "http",
        "http.flavor": "1.1",
        "http.status_code": 200,
    }
    assert attributes(found[whole], "gen_ai.request.") == {
        "gen_ai.request.model": "int8",
        "gen_ai.request.max_tokens": 2,
        "gen_ai.request.choice.count": 1,
    }


async def test_a_path_of_the_callers_names_no_span(http: httpx.AsyncClient, spans: Read) -> None:
    """Names are few, and say nothing that a caller wrote."""
    await http.get("/the secret prompt")
    await http.get("/v1/models/the secret prompt")
    assert set(await spans()) == {"GET", "GET /v1/models/{model}"}


async def test_a_refusal_is_an_error_without_its_words(stub: Any, spans: Read) -> None:
    """An unknown variant's name is the caller's text."""
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Complete(pb.GenerateRequest(text=PROMPT, variant="the secret prompt"))
    found = await spans()
    server, whole = "/inference_unlimited.v1.Inference/Complete", "text_completion routed"
    assert tree(found) == {whole: server}
    assert attributes(found[server], "rpc.grpc") == {"rpc.grpc.status_code": 5}
    assert attributes(found[whole], "error", "gen_ai.response", "gen_ai.usage") == {
        "error.type": "not_found"
    }
    assert found[whole].status.status_code is StatusCode.ERROR


async def test_a_failure_of_the_engine_shows_how_far_it_came(
    bench: Bench, stub: Any, spans: Read
) -> None:
    """Both spans are errors; what was computed and sent before is there."""
    bench.engine.script = lambda _: [[70], [71]]
    bench.engine.failures["r1"] = FailureCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError):
        [one async for one in stub.Generate(pb.GenerateRequest(text=PROMPT))]
    found = await spans()
    server, whole = "/inference_unlimited.v1.Inference/Generate", "text_completion routed"
    assert {"queue", "prefill", "decode", "stream"} < set(found)
    assert attributes(found[whole], "error") == {"error.type": "unavailable"}
    assert {found[name].status.status_code for name in (server, whole)} == {StatusCode.ERROR}


async def test_who_leaves_is_no_error_of_ours(bench: Bench, stub: Any, spans: Read) -> None:
    """What was sent until then is a span."""
    bench.engine.gate = threading.Semaphore(1)
    bench.engine.script = lambda _: [[70], [71]]
    call = stub.Generate(pb.GenerateRequest(text=PROMPT))
    await anext(aiter(call))
    call.cancel()
    await bench.until(lambda: bench.recorder.records)
    found = await spans()
    assert found["text_completion routed"].status.status_code is StatusCode.UNSET
    assert attributes(found["text_completion routed"], "error") == {"error.type": "cancelled"}
    assert "stream" in found
    assert "decode" not in found


async def test_each_request_of_a_triton_stream_has_its_own(
    channel: grpc.aio.Channel, tracing: Tracing, memory: InMemorySpanExporter
) -> None:
    """They hang side by side below the stream's span."""
    tensor = oip.ModelInferRequest.InferInputTensor(
        name="text_input",
        datatype="BYTES",
        shape=[1],
        contents=oip.InferTensorContents(bytes_contents=[b"x"]),
    )
    request = oip.ModelInferRequest(model_name="int8", inputs=[tensor])
    stub: Any = oip_grpc.GRPCInferenceServiceStub(channel)
    metadata = (("x-request-id", "req-1"),)
    assert [one async for one in stub.ModelStreamInfer(iter([request] * 2), metadata=metadata)]
    tracing.flush()
    found = memory.get_finished_spans()
    (stream,) = [span for span in found if span.kind is SpanKind.SERVER]
    below = [span for span in found if span.name == "text_completion int8"]
    assert {span.parent.span_id for span in below if span.parent} == {stream.context.span_id}  # type: ignore[union-attr]
    assert sorted((span.attributes or {})["inference_unlimited.request_id"] for span in below) == [
        "req-1/1",
        "req-1/2",
    ]  # fmt: skip


@pytest.mark.parametrize("traceparent", [UNSAMPLED, None])
async def test_what_is_not_sampled_is_nowhere(
    bench: Bench, traceparent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's decision holds, else the ratio; no exemplar leads to a missing trace."""
    memory = InMemorySpanExporter()
    none = Tracing(TracingSettings("http://127.0.0.1:1", 0.0), "demo", memory)
    monkeypatch.setattr(bench.core, "_observer", bench.recorder)
    server, port = create_server(
        bench.core, HealthService(), host="127.0.0.1", port=0, tracing=none.methods
    )
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = pb_grpc.InferenceStub(channel)
        metadata = (("traceparent", traceparent),) if traceparent else ()
        await stub.Complete(pb.GenerateRequest(text="x"), metadata=metadata)
        sampled = (("traceparent", TRACEPARENT),)
        await stub.Complete(pb.GenerateRequest(text="x"), metadata=sampled)
    await server.stop(0)
    none.flush()
    assert [record.context.trace_id for record in bench.recorder.records] == ["", TRACE]
    assert [span.name for span in memory.get_finished_spans()] == [
        "/inference_unlimited.v1.Inference/Complete"
    ]
    await none.close()


async def test_probes_are_not_traced(channel: grpc.aio.Channel, spans: Read) -> None:
    """A probe every few seconds would bury the rest."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    await stub.Check(health_pb2.HealthCheckRequest())
    assert await spans() == {}


class Stuck(SpanExporter):
    """Sends nothing until it is told to give up."""

    def __init__(self) -> None:
        self.begun, self.given_up = threading.Event(), threading.Event()
        self.exports = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        del spans
        self.exports += 1
        self.begun.set()
        self.given_up.wait()
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.given_up.set()


async def test_an_exporter_that_is_stuck_holds_nobody_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are answered while a batch is stuck and the queue is full; the end does not wait."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    stuck = Stuck()
    tracing = Tracing(TO_NOWHERE, "demo", stuck)
    monkeypatch.setattr(bench.core, "_observer", tracing.spans)
    server, port = create_server(
        bench.core, HealthService(), host="127.0.0.1", port=0, tracing=tracing.methods
    )
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = pb_grpc.InferenceStub(channel)
        for _ in range(20):
            await stub.Complete(pb.GenerateRequest(text="x"))
    assert stuck.begun.is_set()
    assert stuck.exports == 1
    await server.stop(0)
    await tracing.close(0.05)
    assert stuck.given_up.is_set()


def settings(endpoint: str | None = None, **environment: str) -> TracingSettings | None:
    return tracing_settings(endpoint, 0.5, environment)


HERE, THERE = "http://here:4317", "https://there:4317"


@pytest.mark.parametrize(
    ("endpoint", "environment", "expected"),
    [
        (None, {}, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, None),
        (HERE, {}, HERE),
        (HERE, {"OTEL_EXPORTER_OTLP_ENDPOINT": THERE}, HERE),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": THERE}, THERE),
        (
            None,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": THERE, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": HERE},
            HERE,
        ),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": THERE, "OTEL_SDK_DISABLED": "true"}, None),
        (HERE, {"OTEL_TRACES_EXPORTER": "none"}, None),
        (HERE, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, HERE),
    ],
)
def test_where_spans_go(
    endpoint: str | None, environment: dict[str, str], expected: str | None
) -> None:
    """The config first, then the standard variables; nowhere by default."""
    found = settings(endpoint, **environment)
    assert found == (None if expected is None else TracingSettings(expected, 0.5))


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "there:4317"},
            "OTEL_EXPORTER_OTLP_ENDPOINT: 'there:4317'",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": THERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' is not served.*4317",
        ),
    ],
)
def test_what_is_not_served_is_said(environment: dict[str, str], words: str) -> None:
    """Spans that go nowhere without a word are worse than none."""
    with pytest.raises(TracingError, match=words):
        settings(**environment)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """On, but not installed: what to install, and how to do without."""
    monkeypatch.delitem(sys.modules, "server.tracing.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(TracingError, match=r"opentelemetry\.sdk\.resources.*\[tracing\]"):
        open_tracing(TO_NOWHERE, "demo")


def test_who_speaks_is_the_environments_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SERVICE_NAME where it is set, else this project's name."""
    assert _resource().attributes["service.name"] == "inference-unlimited"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "text")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    attributes = _resource().attributes
    assert attributes["service.name"] == "text"
    assert attributes["deployment.environment"] == "test"
    assert "service.version" in attributes


PROBE = """
import json, sys
import server.app, server.listeners, server.commands.serve
if sys.argv[1] == "on":
    from server.tracing.settings import TracingSettings, open_tracing
    open_tracing(TracingSettings("http://127.0.0.1:1", 1.0), "demo")
print(json.dumps([name for name in sys.modules if name.startswith("opentelemetry")]))
"""


@pytest.mark.parametrize("state", ["off", "on"])
def test_nothing_of_opentelemetry_is_imported_when_off(state: str) -> None:
    """A server without tracing neither needs nor pays for it; with it, this check would see it."""
    found = subprocess.run(
        [sys.executable, "-c", PROBE, state],
        env={**os.environ, "OTEL_SDK_DISABLED": "false"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert bool(json.loads(found.stdout)) == (state == "on")
