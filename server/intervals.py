"""Intervals by resampling, as a serving process can afford them: in parts, in little memory.

Owns two figures: a mean that is paired by answer, and a ratio of two samples within classes. Both
with a percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
13). Knows nothing of what the figures are of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from server.comparison.statistics import LEVEL, Estimate

FEWEST_ANSWERS = 8
"""Of fewer, resamples are too much alike."""

FEWEST_IN_CLASS = 5
FEWEST_REQUESTS = 20

_RESAMPLES = 2000
_AT_A_TIME = 100  # resamples

_Floats = NDArray[np.float64]


def mean_over_answers(sums: _Floats, counts: _Floats) -> Estimate:
    """The mean over all positions, from each answer's sum and count; answers are what is drawn.

    Args:
        sums: (n,) over the positions of an answer.
        counts: (n,) how many positions it has, at least 1.
    """
    value = float(sums.sum() / counts.sum())
    if len(sums) < FEWEST_ANSWERS:
        return Estimate(value)
    rng = np.random.default_rng(0)
    drawn = np.empty(_RESAMPLES)
    for begin in range(0, _RESAMPLES, _AT_A_TIME):
        chosen = rng.integers(0, len(sums), (_AT_A_TIME, len(sums)))
        means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
        drawn[begin : begin + _AT_A_TIME] = means
    return Estimate(value, *_ends(drawn))


def stratified_ratio(ours: Mapping[int, _Floats], theirs: Mapping[int, _Floats]) -> Estimate | None:
    """The typical ratio of two samples of logarithms, compared class by class.

    The difference of the means of each class, weighted by the product of both counts over their
    sum, as its precision is; drawn within the classes.

    Returns:
        None where the classes that both have are too small.
    """
    shared = [
        (ours[key], theirs[key])
        for key in sorted(ours.keys() & theirs.keys())
        if min(len(ours[key]), len(theirs[key])) >= FEWEST_IN_CLASS
    ]
    totals = (sum(len(pair[side]) for pair in shared) for side in (0, 1))
    if min(totals) < FEWEST_REQUESTS:
        return None
    weights = np.array([len(a) * len(b) / (len(a) + len(b)) for a, b in shared])
    weights /= weights.sum()
    value = sum(w * (a.mean() - b.mean()) for w, (a, b) in zip(weights, shared, strict=True))
    rng = np.random.default_rng(0)
    drawn = np.zeros(_RESAMPLES)
    for weight, (a, b) in zip(weights, shared, strict=True):
        drawn += weight * (_means(a, rng) - _means(b, rng))
    low, high = _ends(drawn)
    return Estimate(math.exp(float(value)), math.exp(low), math.exp(high))


def _means(values: _Floats, rng: np.random.Generator) -> _Floats:
    """(resamples,) means of resamples.

    Deviations are stretched by the root of n / (n - 1): resamples of few values vary too little.
    """
    count = len(values)
    drawn = np.empty(_RESAMPLES)
    for begin in range(0, _RESAMPLES, _AT_A_TIME):
        chosen = values[rng.integers(0, count, (_AT_A_TIME, count))]
        drawn[begin : begin + _AT_A_TIME] = chosen.mean(axis=1)
    middle = values.mean()
    stretched: _Floats = middle + (drawn - middle) * math.sqrt(count / (count - 1))
    return stretched


def _ends(drawn: _Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
