"""What may leave in a span: figures and names of ours, and nothing that a caller wrote.

Instrumentations describe errors by their messages and requests by their URLs, and both may quote a
prompt. So only attributes of known names pass, and neither messages nor events. Runs on the
exporting thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status

_NAMESPACES = ("gen_ai.", "inference_unlimited.", "rpc.", "net.", "network.", "client.", "server.")
_NAMES = frozenset(
    {
        "error.type",
        "http.flavor",
        "http.method",
        "http.request.method",
        "http.response.status_code",
        "http.route",
        "http.scheme",
        "http.status_code",
        "url.scheme",
    }
)
_USER_AGENT = "rpc.user_agent"  # the caller's text, and long


class DiscreetExporter(SpanExporter):
    """Passes spans on without what is not known to be harmless."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        return self._exporter.export([_discreet(span) for span in spans])

    def shutdown(self) -> None:
        """Give up what is being sent; further batches are dropped."""
        if not self._ended:
            self._ended = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what the exporter itself holds back."""
        return self._exporter.force_flush(timeout_millis)


def _discreet(span: ReadableSpan) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes={
            name: value for name, value in (span.attributes or {}).items() if _is_harmless(name)
        },
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _is_harmless(name: str) -> bool:
    return name in _NAMES or (name.startswith(_NAMESPACES) and name != _USER_AGENT)
