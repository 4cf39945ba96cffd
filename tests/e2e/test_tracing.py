"""A real server's spans at a real receiver of OTLP, and the ids that bring all of it together."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from protos import inference_pb2 as pb
from server.comparison.server_process import ServerProcess
from tests.e2e.conftest import Launch

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
OTHER = "1" * 32
PROMPT = "def fibonacci(n):"


class Receiver(otlp_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[otlp.ExportTraceServiceRequest] = []

    def Export(  # noqa: N802
        self, request: otlp.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> otlp.ExportTraceServiceResponse:
        del context
        self.requests.append(request)
        return otlp.ExportTraceServiceResponse()

    def spans(self, trace_id: str) -> dict[str, Any]:
        """Those of a trace, by name."""
        return {
            span.name: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == trace_id
        }


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    """A receiver and its address."""
    server = grpc.server(ThreadPoolExecutor(1))
    receiver = Receiver()
    otlp_grpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield receiver, f"http://127.0.0.1:{port}"
    server.stop(0).wait()


def serve(launch: Launch, store: Path, **environment: str) -> ServerProcess:
    server = launch(
        None,
        environment={
            "INFERENCE_UNLIMITED_STORE": str(store),
            "INFERENCE_UNLIMITED_LOG__REQUESTS": "true",
            "INFERENCE_UNLIMITED_LOG__FORMAT": "json",
            **environment,
        },
    )
    server.wait_ready()
    return server


def request_lines(server: ServerProcess) -> dict[str, dict[str, Any]]:
    """The log's lines of requests, by id."""
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    return {line["request_id"]: line for line in lines if line["event"] == "request"}


def ask(server: ServerProcess, stub: Callable[[ServerProcess], Any], name: str, trace: str) -> None:
    """One request over gRPC."""
    metadata = [("x-request-id", name)]
    if trace:
        metadata.append(("traceparent", f"00-{trace}-{CALLER}-01"))
    sampling = pb.SamplingParameters(max_tokens=8, ignore_eos=True)
    request = pb.GenerateRequest(variant="int8", text=PROMPT, sampling=sampling)
    assert list(stub(server).Generate(request, metadata=metadata, timeout=60))


def test_spans_reach_a_collector_under_the_callers_trace(
    launch: Launch,
    demo_store: Path,
    stub: Callable[[ServerProcess], Any],
    receiver: tuple[Receiver, str],
) -> None:
    """Over both faces; and logs, headers and exemplars name the same request."""
    collector, address = receiver
    server = serve(launch, demo_store, OTEL_EXPORTER_OTLP_ENDPOINT=address)
    ask(server, stub, "over-grpc", TRACE)
    answer = httpx.post(
        f"{server.http_url}/chat/completions",
        json={
            "model": "int4",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": 4,
        },
        headers={"x-request-id": "over-http", "traceparent": f"00-{OTHER}-{CALLER}-01"},
        timeout=60,
    )
    assert answer.headers["x-request-id"] == "over-http"
    refused = httpx.post(f"{server.http_url}/completions", json={"prompt": ""}, timeout=60)
    assert refused.json()["error"]["request_id"] == refused.headers["x-request-id"]
    page = metrics(server)
    assert server.stop() == 0

    for trace, face, kind, variant in (
        (TRACE, "/inference_unlimited.v1.Inference/Generate", "text_completion", "int8"),
        (OTHER, "POST /v1/chat/completions", "chat", "int4"),
    ):
        spans = collector.spans(trace)
        whole = spans[f"{kind} {variant}"]
        assert set(spans) == {face, whole.name, "queue", "prefill", "decode", "stream"}
        assert spans[face].parent_span_id.hex() == CALLER
        assert whole.parent_span_id == spans[face].span_id
        phases = [spans[name] for name in ("queue", "prefill", "decode")]
        assert all(phase.parent_span_id == whole.span_id for phase in phases)
        times = [whole.start_time_unix_nano]
        for phase in phases:
            times += [phase.start_time_unix_nano, phase.end_time_unix_nano]
        assert times == sorted(times)
    assert not any(PROMPT.encode() in one.SerializeToString() for one in collector.requests)

    lines = request_lines(server)
    assert (lines["over-grpc"]["trace_id"], lines["over-grpc"]["variant"]) == (TRACE, "int8")
    assert (lines["over-http"]["trace_id"], lines["over-http"]["variant"]) == (OTHER, "int4")
    assert lines["over-grpc"]["completion_tokens"] == 8
    assert lines[refused.headers["x-request-id"]]["status"] == "invalid_argument"
    assert PROMPT not in server.log
    first = r'inference_time_to_first_token_seconds_bucket\{[^}]*variant="int8"\} \S+ # \{(\S+)\}'
    assert re.findall(first, page) == [f'trace_id="{TRACE}"']


def test_a_collector_that_is_away_costs_nothing(
    launch: Launch, demo_store: Path, stub: Callable[[ServerProcess], Any]
) -> None:
    """Requests are answered and the server stops as ever; exemplars and logs have their ids."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = serve(
        launch,
        demo_store,
        INFERENCE_UNLIMITED_TELEMETRY__OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        OTEL_BSP_SCHEDULE_DELAY="50",
    )
    for number in range(8):
        ask(server, stub, f"req-{number}", "")
    server.wait_for(lambda: "exporting traces" in server.log or None)  # it did try
    ask(server, stub, "afterwards", "")
    assert server.stop() == 0
    lines = request_lines(server)
    assert [line["status"] for line in lines.values()] == ["ok"] * 9
    assert len({line["trace_id"] for line in lines.values()}) == 9


def metrics(server: ServerProcess) -> str:
    """As OpenMetrics."""
    accept = {"Accept": "application/openmetrics-text;version=1.0.0"}
    request = urllib.request.Request(server.metrics_url, headers=accept)  # noqa: S310 - our own
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own
        page: str = answer.read().decode()
    return page
