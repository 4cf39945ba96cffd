"""What the attempts of a run come to: percentiles, rates and goodput, over all and by variant.

A percentile is given only where enough samples lie beyond it. Knows nothing of how requests were
sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from server.bench.attempt import LEFT, OK, OVERLOADED, Attempt
from server.bench.run import Record
from server.comparison.statistics import percentile

PERCENTILES = (0.5, 0.9, 0.95, 0.99)
LATE_S = 0.05
"""A request that is sent later than this after it was due counts as late."""
_LATE_SHARE = 0.01
_SHORTEST_SENDING_S = 1.0  # over less, what came meanwhile is no throughput


@dataclass(frozen=True, slots=True)
class Objective:
    """What a user is content with (an SLO); None sets no bound.

    Attributes:
        first_token_s: To the first token.
        inter_token_s: Between tokens, on average.
        duration_s: To the end.
    """

    first_token_s: float | None = None
    inter_token_s: float | None = None
    duration_s: float | None = None

    def met(self, one: Attempt) -> bool:
        """Whether a request was answered in time in every respect."""
        gaps = one.gaps_s
        measured = (
            (self.first_token_s, one.first_token_s),
            (self.inter_token_s, sum(gaps) / len(gaps) if gaps else 0.0),
            (self.duration_s, one.duration_s),
        )
        return one.status == OK and all(
            bound is None or (value is not None and value <= bound) for bound, value in measured
        )


def summarize(record: Record, objective: Objective) -> dict[str, Any]:
    """Figures over all and by variant; latencies are of requests that were answered."""
    attempts = record.attempts
    variants = sorted({one.variant for one in attempts if one.variant})
    late = sum(one.lateness_s > LATE_S for one in attempts)
    return {
        "objective": asdict(objective),
        "seconds": record.seconds,
        "sending_seconds": record.sending_s,
        **_figures(attempts, record, objective),
        "messages": _messages(attempts),
        "lateness_seconds": _spread(one.lateness_s for one in attempts),
        "late_requests": late,
        "generator_was_late": late > _LATE_SHARE * len(attempts),
        "variants": {
            name: _figures([one for one in attempts if one.variant == name], record, objective)
            for name in variants
        },
    }


def _figures(attempts: Sequence[Attempt], record: Record, objective: Objective) -> dict[str, Any]:
    seconds = max(record.seconds, 1e-9)
    answered = [one for one in attempts if one.status == OK]
    begun = [one for one in attempts if one.first_token_s is not None]
    good = sum(objective.met(one) for one in attempts)
    unasked = sum(one.status == LEFT for one in attempts)
    return {
        "requests": len(attempts),
        "statuses": dict(sorted(Counter(one.status for one in attempts).items())),
        "requests_per_second": len(answered) / seconds,
        "tokens_per_second": sum(one.tokens for one in attempts) / seconds,
        "sending_tokens_per_second": _while_sending(attempts, record),
        "goodput_requests_per_second": good / seconds,
        # Who left did not want the answer, and says nothing of whether it would have been in time.
        "goodput_share": good / max(len(attempts) - unasked, 1),
        "cached_tokens": sum(one.cached_tokens for one in attempts),
        "time_to_first_token_seconds": _spread(one.first_token_s or 0.0 for one in begun),
        "inter_token_latency_seconds": _spread(gap for one in begun for gap in one.gaps_s),
        "request_duration_seconds": _spread(one.duration_s for one in answered),
        "queue_seconds": _spread(one.queue_s for one in answered if one.queue_s is not None),
        "refusal_seconds": _spread(one.duration_s for one in attempts if one.status == OVERLOADED),
    }


def _while_sending(attempts: Iterable[Attempt], record: Record) -> float | None:
    """Tokens per second until the last request was sent: without the end, when few are left."""
    if record.sending_s < _SHORTEST_SENDING_S:
        return None
    end_s = record.begun_s + record.sending_s
    tokens = sum(count for one in attempts for came_s, count in one.arrivals if came_s <= end_s)
    return tokens / record.sending_s


def _messages(attempts: Iterable[Attempt]) -> dict[str, str]:
    """The first sentence that the server said with each status."""
    messages: dict[str, str] = {}
    for one in attempts:
        if one.message:
            messages.setdefault(one.status, one.message)
    return dict(sorted(messages.items()))


def _spread(values: Iterable[float]) -> Mapping[str, float | int | None]:
    samples = [*values]
    spread: dict[str, float | int | None] = {"samples": len(samples)}
    spread["mean"] = sum(samples) / len(samples) if samples else None
    for share in PERCENTILES:
        spread[f"p{share * 100:g}"] = percentile(samples, share)
    spread["max"] = max(samples, default=None)
    return spread
