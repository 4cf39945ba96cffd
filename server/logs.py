"""Logging: events with fields, on standard error; one format for every library.

Owns the process's logging set-up. Console lines for people, one JSON object per line for machines.
Every line that is written while a request is answered carries its id, and that of its trace.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog

from server.request_context import current


class _StderrHandler(logging.StreamHandler[Any]):
    """Looks ``sys.stderr`` up at each line, since a progress bar replaces it for a while."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        """Fixed."""


def configure(
    level: Literal["debug", "info", "warning", "error"],
    form: Literal["auto", "console", "json"],
) -> None:
    """Set the process's logging up, once, at its start."""
    as_console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_request,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _drop_unset,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    final: list[structlog.typing.Processor] = (
        [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if as_console
        else [
            structlog.processors.format_exc_info,
            _in_order,
            structlog.processors.JSONRenderer(),
        ]
    )
    handler = _StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Each request to the ops listener, and uvicorn's own life, are of no interest.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # gRPC logs its own race, with a traceback: an answer to a call that has just been cancelled.
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_lost_race)


def _is_no_lost_race(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ExecuteBatchError"


def _with_request(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    request = current()
    if request.request_id:
        event.setdefault("request_id", request.request_id)
        event.setdefault("trace_id", request.trace_id or None)
    return event


def _drop_unset(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: value for key, value in event.items() if value is not None}


def _in_order(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """When, how bad and what come first, as people read."""
    first = {key: event[key] for key in ("timestamp", "level", "event") if key in event}
    return {**first, **event}
