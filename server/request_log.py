"""One line per request: which variant answered it, how it ended, its tokens and its times.

Knows nothing of prompts or texts, which are in no log.
"""

from __future__ import annotations

from typing import Any

import structlog

from server.observer import RequestObserver, RequestRecord

_DIGITS = 6  # microseconds


class RequestLog(RequestObserver):
    """Writes the lines, at level info."""

    def __init__(self, log: Any = None) -> None:
        self._log = log or structlog.get_logger("server.requests")

    def finished(self, record: RequestRecord) -> None:
        """See ``RequestObserver``."""
        timings = record.timings
        # Named here as well: whoever ends an abandoned stream is no longer that request's task.
        self._log.info(
            "request",
            request_id=record.context.request_id or None,
            trace_id=record.context.trace_id or None,
            operation=record.operation,
            variant=record.variant or None,
            status=record.status.value,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            cached_tokens=record.cached_tokens,
            draft_tokens=record.draft_tokens or None,
            accepted_tokens=record.accepted_tokens if record.draft_tokens else None,
            duration_s=round(record.duration_s, _DIGITS),
            first_token_s=_rounded(record.first_token_s),
            queue_s=None if timings is None else _rounded(timings.queue_s),
            prefill_s=None if timings is None else _rounded(timings.prefill_s),
            decode_s=None if timings is None else _rounded(timings.decode_s),
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, _DIGITS)
