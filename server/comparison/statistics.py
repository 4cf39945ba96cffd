"""Intervals, p-values and the correction for many comparisons.

Owns the arithmetic: bootstrap over documents (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, https://doi.org/10.1201/9780429246593), Student's t over rounds, and Holm's
step-down (A Simple Sequentially Rejective Multiple Test Procedure, 1979,
https://www.jstor.org/stable/4615733). Knows nothing of what the figures are of.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 9_999
_FEWEST_DOCUMENTS = 8  # of fewer, resamples are too much alike
_FEWEST_ROUNDS = 3
_TAIL_SAMPLES = 20  # a percentile p rests on 20 / (1 - p) samples, so that 20 lie beyond it

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval at ``LEVEL``.

    Attributes:
        value: The estimate.
        low: Lower end; None when there were too few samples to tell.
        high: Upper end.
        p: That the true value is the one of no effect; None when it was not tested.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def excludes(self, null: float) -> bool:
        """Whether the interval says that the true value is another than this."""
        return self.low is not None and self.high is not None and not self.low <= null <= self.high


def mean_over_documents(values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """A weighted mean with its bootstrap interval; the documents are what is drawn.

    ``values`` may be differences of pairs, so that documents are paired. The p-value is of the
    mean 0: twice the share of resamples on the rarer side of it.
    """
    means, weighed = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    value = float(_weighted(means, weighed, axis=-1))
    if means.size < _FEWEST_DOCUMENTS:
        return Estimate(value)
    if np.ptp(means) == 0:  # all alike: resamples are as well
        return Estimate(value, value, value, 1.0 if value == 0 else 1 / (RESAMPLES + 1))
    drawn, (low, high) = _resampled(means, weighed)
    rarer = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    return Estimate(value, low, high, min(2 * (rarer + 1) / (RESAMPLES + 1), 1.0))


def share_over_prompts(values: Sequence[float]) -> Estimate:
    """A mean of one figure per prompt, each of the same weight."""
    return mean_over_documents(values, [1.0] * len(values))


def typical(values: Sequence[float]) -> Estimate:
    """The geometric mean of one figure per round, with its interval; not tested."""
    return replace(ratio_over_rounds(values, [1.0] * len(values)), p=None)


def ratio_over_rounds(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The typical ratio of two figures that were taken in the same rounds, paired by round.

    The geometric mean, with Student's t over the logarithms of the rounds' ratios: rounds are few
    (five by default), and so few that resampling them would draw intervals much too narrow. The
    p-value is of the ratio 1.
    """
    logs = np.log(np.asarray(ours, np.float64) / np.asarray(theirs, np.float64))
    middle = float(logs.mean())
    if logs.size < _FEWEST_ROUNDS:
        return Estimate(math.exp(middle))
    spread = float(logs.std(ddof=1)) / math.sqrt(logs.size)
    if spread == 0:
        value = math.exp(middle)
        return Estimate(value, value, value, 1.0 if middle == 0 else 0.0)
    from scipy.stats import t

    reach = float(t.ppf((1 + LEVEL) / 2, logs.size - 1)) * spread
    p = 2 * float(t.sf(abs(middle) / spread, logs.size - 1))
    return Estimate(math.exp(middle), math.exp(middle - reach), math.exp(middle + reach), p)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P-values adjusted so that a whole report errs in at most one case of twenty at 0.05.

    Holm's step-down: the smallest is multiplied by the number of comparisons, the next by one
    less, and none comes out smaller than one before it.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = largest
    return tuple(adjusted)


def percentile(samples: Sequence[float], p: float) -> float | None:
    """The percentile ``p`` (0..1), None when there are fewer samples than it needs."""
    if len(samples) < needed(p):
        return None
    return float(np.quantile(samples, p))


def needed(p: float) -> int:
    """How many samples a percentile needs."""
    return math.ceil(round(_TAIL_SAMPLES / (1 - p), 6))


def _resampled(means: _Floats, weights: _Floats) -> tuple[_Floats, tuple[float, float]]:
    """Means of resamples, and their interval: bias-corrected and accelerated where that exists."""
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that BCa is degenerate; its ends are then no numbers
        result = bootstrap(
            (means, weights),
            _weighted,
            n_resamples=RESAMPLES,
            paired=True,
            vectorized=True,
            confidence_level=LEVEL,
            method="BCa",
            rng=np.random.default_rng(0),
        )
    drawn: _Floats = result.bootstrap_distribution
    low, high = map(float, result.confidence_interval)
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = map(float, np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return drawn, (low, high)


def _weighted(values: _Floats, weights: _Floats, axis: int) -> _Floats:
    total: _Floats = (values * weights).sum(axis=axis) / weights.sum(axis=axis)
    return total
