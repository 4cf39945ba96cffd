"""Tracing with OpenTelemetry's SDK: what samples, batches and sends spans, and who makes them.

Owns the provider and its end. Spans are batched and sent by a thread of the SDK's; when it cannot
send, they are dropped and requests do not notice. Nothing global is set, so that two servers in one
process share nothing. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from starlette.types import ASGIApp

from server.tracing.discretion import DiscreetExporter
from server.tracing.faces import TracedMethods, traced_application
from server.tracing.settings import TracingSettings
from server.tracing.spans import RequestSpans

_NAME = "inference-unlimited"
_LAST_WORDS_S = 2.0  # for spans that were not sent yet


class Tracing:
    """Everything that traces one server.

    Args:
        settings: Where to, and how many.
        model: What the server serves variants of.
        exporter: Takes the spans instead of a collector.
    """

    def __init__(
        self, settings: TracingSettings, model: str, exporter: SpanExporter | None = None
    ) -> None:
        self._exporter = DiscreetExporter(exporter or OTLPSpanExporter(endpoint=settings.endpoint))
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(settings.sample_ratio),
            resource=_resource(),
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_events=0),  # an exception's message may quote the caller
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self.methods = TracedMethods(self._provider)
        self.spans = RequestSpans(self._provider.get_tracer(_NAME, version(_NAME)), model)

    def application(self, application: ASGIApp) -> ASGIApp:
        """An HTTP application whose requests are traced."""
        return traced_application(application, self._provider)

    def flush(self) -> None:
        """Send what there is now; waits for it."""
        self._provider.force_flush()

    async def close(self, seconds: float = _LAST_WORDS_S) -> None:
        """Send what was not sent yet, as far as that is possible in time."""
        sending = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        await asyncio.wait({sending}, timeout=seconds)
        if not sending.done():
            await asyncio.to_thread(self._exporter.shutdown)  # no further attempts
        await sending


def _resource() -> Resource:
    """Who speaks; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say it better."""
    ours = Resource({SERVICE_NAME: _NAME, SERVICE_VERSION: version(_NAME)})
    theirs = Resource.create()
    name = str(theirs.attributes.get(SERVICE_NAME, ""))
    if name.startswith("unknown_service"):  # what the SDK says where nobody said anything
        return theirs.merge(ours)
    return ours.merge(theirs)
