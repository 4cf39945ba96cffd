"""Requests that come when they come: latencies of those who serve while others run, by load.

Owns the arrivals (Poisson, the same for everybody) and what is read off them. Capacity is what a
contender completes when more waits than it can take. Knows nothing of how contenders are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.contenders import Contender
from benchmarks.prompts import Prompts

PROMPT_TOKENS = 128
NEW_TOKENS = 32
_CAPACITY_REQUESTS = 32
_LEAST_REQUESTS = 12
TTFT_S, BETWEEN_S = 2.0, 0.2
"""A request is good whose first token, and whose tokens at their p95, come within these."""


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One contender under one load.

    Attributes:
        contender: Who.
        round: In which round.
        share: Of what ``rate`` is a share; the name of a capacity.
        rate: Requests per second that came.
        first_p50_s: Seconds to the first token.
        first_p95_s: The same of the slowest twentieth.
        between_p50_s: Seconds between two tokens of a stream.
        between_p95_s: The same of the slowest twentieth.
        goodput: Requests per second that were good.
    """

    contender: str
    round: int
    share: str
    rate: float
    first_p50_s: float
    first_p95_s: float
    between_p50_s: float
    between_p95_s: float
    goodput: float


def capacity(contender: Contender, prompts: Prompts, round_: int) -> float:
    """Requests per second when more wait than can be taken."""
    asked = prompts.draw("capacity", round_, _CAPACITY_REQUESTS, PROMPT_TOKENS)
    answer = contender.generate(asked, NEW_TOKENS)
    return float(_CAPACITY_REQUESTS / answer["seconds"])


def moments(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests come: independent of each other, ``rate`` of them in a second."""
    count = max(_LEAST_REQUESTS, round(rate * seconds))
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    arrivals: list[float] = np.cumsum(gaps).tolist()
    return arrivals


def under_load(
    contender: Contender, prompts: Prompts, *, rate: float, seconds: float, share: str, round_: int
) -> LoadPoint:
    """Serve requests that come at a rate, and say what their users saw."""
    at_s = moments(rate, seconds, round_)
    asked = prompts.draw(f"load {share}", round_, len(at_s), PROMPT_TOKENS)
    answer = contender.generate(asked, NEW_TOKENS, at_s=at_s)
    return point(answer, at_s, contender=contender.name, round_=round_, share=share, rate=rate)


def point(
    answer: dict[str, Any],
    at_s: Sequence[float],
    *,
    contender: str,
    round_: int,
    share: str,
    rate: float,
) -> LoadPoint:
    """What users saw, from when requests came and when tokens did."""
    arrivals = [np.asarray(stream) for stream in answer["arrivals_s"]]
    firsts = np.array([stream[0] - at for stream, at in zip(arrivals, at_s, strict=True)])
    between = [np.diff(stream) for stream in arrivals]
    good = sum(
        first <= TTFT_S and np.quantile(gaps, 0.95) <= BETWEEN_S
        for first, gaps in zip(firsts, between, strict=True)
    )
    gaps = np.concatenate(between)
    return LoadPoint(
        contender=contender,
        round=round_,
        share=share,
        rate=rate,
        first_p50_s=float(np.quantile(firsts, 0.5)),
        first_p95_s=float(np.quantile(firsts, 0.95)),
        between_p50_s=float(np.quantile(gaps, 0.5)),
        between_p95_s=float(np.quantile(gaps, 0.95)),
        goodput=float(good / answer["seconds"]),
    )
