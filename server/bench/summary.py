"""What the attempts of a run come to: percentiles, rates and goodput, over all and by variant.

A percentile is given only where enough samples lie beyond it. Knows nothing of how requests were
sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.bench.attempt import LEFT, OK, Attempt
from server.comparison.statistics import percentile

PERCENTILES = (0.5, 0.9, 0.95, 0.99)


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


def summarize(attempts: Sequence[Attempt], seconds: float, objective: Objective) -> dict[str, Any]:
    """Figures over all and by variant; latencies are of requests that were answered."""
    variants = sorted({one.variant for one in attempts if one.variant})
    by_variant = {
        name: _figures([one for one in attempts if one.variant == name], seconds, objective)
        for name in variants
    }
    return {**_figures(attempts, seconds, objective), "variants": by_variant}


def _figures(attempts: Sequence[Attempt], seconds: float, objective: Objective) -> dict[str, Any]:
    answered = [one for one in attempts if one.status == OK]
    begun = [one for one in attempts if one.first_token_s is not None]
    good = sum(objective.met(one) for one in attempts)
    unasked = sum(one.status == LEFT for one in attempts)
    waits = [one.queue_s for one in answered if one.queue_s is not None]
    return {
        "requests": len(attempts),
        "statuses": dict(sorted(Counter(one.status for one in attempts).items())),
        "seconds": seconds,
        "requests_per_second": len(answered) / seconds,
        "tokens_per_second": sum(one.tokens for one in attempts) / seconds,
        "goodput_requests_per_second": good / seconds,
        # Who left did not want the answer, and says nothing of whether it would have been in time.
        "goodput_share": good / max(len(attempts) - unasked, 1),
        "time_to_first_token_seconds": _spread(one.first_token_s or 0.0 for one in begun),
        "inter_token_latency_seconds": _spread(gap for one in begun for gap in one.gaps_s),
        "request_duration_seconds": _spread(one.duration_s for one in answered),
        "queue_seconds": _spread(waits),
        "refusal_seconds": _spread(
            one.duration_s for one in attempts if one.status == "resource_exhausted"
        ),
    }


def _spread(values: Iterable[float]) -> Mapping[str, float | int | None]:
    samples = [*values]
    spread: dict[str, float | int | None] = {"samples": len(samples)}
    spread["mean"] = sum(samples) / len(samples) if samples else None
    for share in PERCENTILES:
        spread[f"p{share * 100:g}"] = percentile(samples, share) if samples else None
    return spread
