"""A request's own spans, made after it ended: the request, its queue, prefill, decode and stream.

They hang below the server span of whichever face read the request, and carry the attributes of the
semantic conventions for generative AI. Costs nothing while tokens are generated. Never a prompt, a
text, a stop string or a message of an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Status as SpanStatus
from opentelemetry.trace import StatusCode, Tracer

from server.errors import Status
from server.observer import RequestObserver, RequestRecord
from server.routing import ROUTED

_PROVIDER = "inference_unlimited"
_NS = 1_000_000_000
# Our word for a parameter, and the conventions' where they have one.
_PARAMETERS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_k": "gen_ai.request.top_k",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}
_LARGEST = (1 << 63) - 1  # of an integer in a span


class RequestSpans(RequestObserver):
    """Makes the spans of sampled requests. ``wall_ns`` is nanoseconds since the epoch."""

    def __init__(
        self, tracer: Tracer, model: str, *, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._tracer = tracer
        self._model = model
        self._wall_ns = wall_ns

    def finished(self, record: RequestRecord) -> None:
        """See ``RequestObserver``."""
        if record.context.parent is None:
            return
        received_ns = self._wall_ns() - round(record.duration_s * _NS)

        def at(seconds: float) -> int:
            return received_ns + round(min(max(seconds, 0.0), record.duration_s) * _NS)

        requested = record.requested or ROUTED
        span = self._tracer.start_span(
            f"{record.operation} {requested}",
            context=record.context.parent,
            attributes=dict(self._attributes(record, requested)),
            start_time=at(0.0),
        )
        if record.status not in (Status.OK, Status.CANCELLED):
            span.set_status(SpanStatus(StatusCode.ERROR))
        below = trace.set_span_in_context(span)
        for name, begin_s, end_s in _phases(record):
            self._tracer.start_span(name, context=below, start_time=at(begin_s)).end(at(end_s))
        span.end(at(record.duration_s))

    def _attributes(self, record: RequestRecord, requested: str) -> Iterator[tuple[str, Any]]:
        yield "gen_ai.operation.name", record.operation
        yield "gen_ai.provider.name", _PROVIDER
        yield "gen_ai.request.model", requested
        yield "inference_unlimited.model", self._model
        if record.context.request_id:
            yield "inference_unlimited.request_id", record.context.request_id
        if record.variant:
            yield "gen_ai.response.model", record.variant
            yield "inference_unlimited.variant", record.variant
        if record.artifact:
            yield "inference_unlimited.artifact", record.artifact
        for ours, theirs in _PARAMETERS.items():
            value = getattr(record.sampling, ours, None)
            if isinstance(value, int | float) and abs(value) <= _LARGEST:
                yield theirs, value
        if record.submitted_s is not None:
            yield "gen_ai.usage.input_tokens", record.prompt_tokens
            yield "gen_ai.usage.output_tokens", record.completion_tokens
            yield "gen_ai.usage.cache_read.input_tokens", record.cached_tokens
        if record.first_token_s is not None:
            yield "gen_ai.response.time_to_first_chunk", record.first_token_s
        if record.finishes:
            yield "gen_ai.response.finish_reasons", [reason.value for reason in record.finishes]
        if record.status is not Status.OK:
            yield "error.type", record.status.value


def _phases(record: RequestRecord) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end, in seconds from when the request was read; as far as it came."""
    if record.submitted_s is not None and record.timings is not None:
        timings, begin_s = record.timings, record.submitted_s
        for name, seconds in (
            ("queue", timings.queue_s),
            ("prefill", timings.prefill_s),
            ("decode", timings.decode_s),
        ):
            if seconds > 0:
                yield name, begin_s, begin_s + seconds
            begin_s += seconds
    if record.first_token_s is not None and record.last_token_s is not None:
        yield "stream", record.first_token_s, record.last_token_s
