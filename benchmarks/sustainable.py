"""What a server sustains, and whether it bears twice that: the search and the bars.

Owns what a probe is, how the highest sustained rate is found, and what is judged of a run beyond
it. Knows nothing of servers and of how requests are sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from server.bench.attempt import INTERRUPTED, LEFT, NO_FINISH, OK, OVERLOADED
from server.bench.run import Record
from server.bench.summary import Objective, summarize

QUEUE_BOUND_S = 1.0
"""The 95th percentile of the seconds in the queue that a sustained rate stays below."""
REFUSAL_BOUND_S = 0.1
THROUGHPUT_SHARE = 0.9
LIGHT, HEAVY = 0.9, 2.0
"""The parts of the sustained rate that are compared."""
_NOT_FINAL = frozenset({LEFT, INTERRUPTED, NO_FINISH})


@dataclass(frozen=True, slots=True)
class Probe:
    """One run at one rate.

    Attributes:
        rate: Requests per second, Poisson.
        sent: Requests that were sent.
        statuses: How many ended how.
        answered_per_second: Requests.
        tokens_per_second: While requests were sent.
        queue_p95_s: Of all requests, where a refused one waits for ever; None where that reaches
            the percentile.
        first_token_p95_s: Of those that got a token; None where none did.
        refusal_p99_s: Of those that were refused for overload; None where none was.
        generator_was_late: Whether the figures are the generator's as well.
        others_cores: Processor cores that others used meanwhile.
    """

    rate: float
    sent: int
    statuses: Mapping[str, int]
    answered_per_second: float
    tokens_per_second: float
    queue_p95_s: float | None
    first_token_p95_s: float | None
    refusal_p99_s: float | None
    generator_was_late: bool = False
    others_cores: float = 0.0

    @property
    def is_sustained(self) -> bool:
        """Whether nearly everybody was served soon."""
        return self.queue_p95_s is not None and self.queue_p95_s < QUEUE_BOUND_S

    @property
    def refused(self) -> int:
        """Requests that were refused for overload."""
        return self.statuses.get(OVERLOADED, 0)


def probe_of(rate: float, sent: int, record: Record, others_cores: float) -> Probe:
    """The figures of a run."""
    report = summarize(record, Objective())
    attempts = record.attempts
    waits = [
        math.inf if one.status != OK or one.queue_s is None else one.queue_s for one in attempts
    ]
    firsts = [one.first_token_s for one in attempts if one.first_token_s is not None]
    refusals = [one.duration_s for one in attempts if one.status == OVERLOADED]
    return Probe(
        rate=rate,
        sent=sent,
        statuses=report["statuses"],
        answered_per_second=report["requests_per_second"],
        tokens_per_second=report["sending_tokens_per_second"] or report["tokens_per_second"],
        queue_p95_s=_quantile(waits, 0.95),
        first_token_p95_s=_quantile(firsts, 0.95),
        refusal_p99_s=_quantile(refusals, 0.99),
        generator_was_late=report["generator_was_late"],
        others_cores=others_cores,
    )


def find(
    probe: Callable[[float], Probe],
    first: float,
    *,
    precision: float,
    lowest: float,
    highest: float,
) -> tuple[float | None, list[Probe]]:
    """The highest rate that is sustained, and all probes.

    A bracket by doubling or halving from the first rate, then bisection of its logarithm.

    Args:
        probe: Takes one rate.
        first: Where to begin.
        precision: The bracket's ends are this part apart at most, such as 0.05.
        lowest: Below it nothing is looked for; None is then the answer.
        highest: Nothing above it is tried.
    """
    probes = [probe(first)]
    low = first if probes[-1].is_sustained else None
    high = None if low is not None else first
    while low is None and high is not None and high / 2 >= lowest:
        probes.append(probe(high / 2))
        low, high = (high / 2, high) if probes[-1].is_sustained else (None, high / 2)
    while low is not None and high is None and low * 2 <= highest:
        probes.append(probe(low * 2))
        low, high = (low * 2, None) if probes[-1].is_sustained else (low, low * 2)
    while low is not None and high is not None and high / low > 1 + precision:
        middle = math.sqrt(low * high)
        probes.append(probe(middle))
        low, high = (middle, high) if probes[-1].is_sustained else (low, middle)
    return low, probes


def judged(
    probes: Sequence[Probe], light: Probe, heavy: Probe, queue_s: float
) -> Iterator[tuple[str, bool]]:
    """What was measured beside each bar, and whether it is met: not by a missing figure.

    Args:
        probes: Those of the search.
        light: At 90 % of the sustained rate.
        heavy: At twice that rate.
        queue_s: The longest that an admitted request waits.
    """
    heavy_s, light_s = heavy.first_token_p95_s, light.first_token_p95_s
    line = (
        f"p95 to first token at twice the load {_seconds(heavy_s)}, at 90 % {_seconds(light_s)} "
        f"(at most that and {queue_s:.1f} s of queue)"
    )
    is_bounded = heavy_s is not None and light_s is not None and heavy_s <= light_s + queue_s
    yield line, is_bounded
    most = max(one.tokens_per_second for one in (*probes, light, heavy))
    share = heavy.tokens_per_second / most if most else 0.0
    line = (
        f"throughput at twice the load {heavy.tokens_per_second:.0f} tokens/s, {share:.0%} of the "
        f"most that was seen (at least {THROUGHPUT_SHARE:.0%})"
    )
    yield line, share >= THROUGHPUT_SHARE
    refusal_s = heavy.refusal_p99_s
    line = f"p99 of {heavy.refused} refusals {_seconds(refusal_s)} (at most {REFUSAL_BOUND_S:g} s)"
    yield line, refusal_s is not None and refusal_s <= REFUSAL_BOUND_S
    everything = (*probes, light, heavy)
    sent = sum(one.sent for one in everything)
    final = sum(
        count
        for one in everything
        for status, count in one.statuses.items()
        if status not in _NOT_FINAL
    )
    is_exact = all(one.sent == sum(one.statuses.values()) for one in everything)
    yield (
        f"{final} of {sent} requests have one final status (all)",
        is_exact and final == sent > 0,
    )


def _quantile(samples: Sequence[float], share: float) -> float | None:
    """Never between two samples, of which one may be infinite; the bars want the worse one."""
    if not samples:
        return None
    value = float(np.quantile(samples, share, method="higher"))
    return value if math.isfinite(value) else None


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f} s"
