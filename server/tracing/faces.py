"""OpenTelemetry's own instrumentations around the gRPC methods and the HTTP application.

They make a server span of each request, below the caller's; here is only what they lack: methods
that write to their context instead of yielding, and telling the request's own context of its span.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from starlette.types import ASGIApp

from server.request_context import traced
from server.rpc.handlers import behaviour_of, with_behaviour

_ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/models")
_MODEL = "/v1/models/{model}"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class TracedMethods(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Traces every method but health and reflection, which are generators or not worth a span."""

    def __init__(self, provider: TracerProvider) -> None:
        self._instrumentation = aio_server_interceptor(  # type: ignore[no-untyped-call]
            tracer_provider=provider
        )

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """The method's handler inside of a span."""
        handler = await continuation(handler_call_details)
        behaviour = None if handler is None else behaviour_of(handler)
        if behaviour is None or handler_call_details.method.startswith("/grpc."):
            return handler

        async def noted(request: Any, context: Any) -> Any:
            _note(trace.get_current_span())
            return await behaviour(request, context)

        # The instrumentation takes every method that streams for a generator. Ours are coroutines,
        # as those are that answer once, and so it is shown one of these.
        async def disguised(_: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(noted)

        shown = await self._instrumentation.intercept_service(disguised, handler_call_details)
        return with_behaviour(handler, shown.unary_unary)


def traced_application(application: ASGIApp, provider: TracerProvider) -> ASGIApp:
    """Every request inside of a span; none for the parts of a body."""
    middleware: ASGIApp = OpenTelemetryMiddleware(
        application,
        default_span_details=_span_details,
        server_request_hook=lambda span, _: _note(span),
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),
        exclude_spans=["receive", "send"],
    )
    return middleware


def _note(span: trace.Span) -> None:
    """Tell the request's context, if somebody will read of it."""
    context = span.get_span_context()
    if context.trace_flags.sampled:
        traced(trace.format_trace_id(context.trace_id), trace.set_span_in_context(span))


def _span_details(scope: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """A name out of few, whatever the caller wrote into the path."""
    method = scope["method"] if scope["method"] in _METHODS else "HTTP"
    path = scope["path"]
    route = _MODEL if path.startswith("/v1/models/") else path if path in _ROUTES else ""
    return (f"{method} {route}", {"http.route": route}) if route else (method, {})
