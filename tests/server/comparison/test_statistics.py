"""Intervals, p-values and corrections against slow or published computations."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from server.comparison.statistics import (
    Estimate,
    holm,
    mean_over_documents,
    needed,
    percentile,
    ratio_over_rounds,
)


def _naive_interval(values: list[float], weights: list[float]) -> tuple[float, float]:
    """The percentile bootstrap, one resample at a time."""
    rng = random.Random(7)  # noqa: S311 - no secret
    means = []
    for _ in range(4000):
        drawn = [rng.randrange(len(values)) for _ in values]
        total = sum(weights[index] for index in drawn)
        means.append(sum(values[index] * weights[index] for index in drawn) / total)
    means.sort()
    return means[100], means[3899]


def test_bootstrap_agrees_with_resampling_in_a_loop() -> None:
    """On symmetric documents the corrected interval is near the plain one, weights included."""
    rng = np.random.default_rng(3)
    values = rng.normal(0.5, 0.2, 40).tolist()
    weights = rng.integers(20, 240, 40).astype(float).tolist()
    estimate = mean_over_documents(values, weights)
    low, high = _naive_interval(values, weights)
    assert estimate.low is not None
    assert estimate.high is not None
    width = high - low
    assert estimate.value == pytest.approx(np.average(values, weights=weights))
    assert estimate.low == pytest.approx(low, abs=0.12 * width)
    assert estimate.high == pytest.approx(high, abs=0.12 * width)
    assert estimate.excludes(0)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 60 samples of a skewed kind, few intervals miss the mean that they were drawn from."""
    rng = np.random.default_rng(11)
    misses = 0
    for _ in range(60):
        estimate = mean_over_documents(rng.exponential(1.0, 30).tolist(), [1.0] * 30)
        misses += estimate.excludes(1.0)
    assert misses <= 10


def test_a_difference_that_is_none_has_a_large_p_value() -> None:
    """Noise around 0 is no difference, noise around 1 is one."""
    noise = np.random.default_rng(5).normal(0, 1, 30)
    noise -= noise.mean()
    none = mean_over_documents(noise.tolist(), [1.0] * 30)
    some = mean_over_documents((noise + 1).tolist(), [1.0] * 30)
    assert none.p is not None
    assert some.p is not None
    assert none.p > 0.5
    assert not none.excludes(0)
    assert some.p < 1e-3


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.25, 1e-4)])
def test_documents_that_are_all_alike_need_no_resamples(value: float, p: float) -> None:
    """An identical variant differs by exactly nothing."""
    assert mean_over_documents([value] * 8, [10.0] * 8) == Estimate(value, value, value, p)


def test_too_few_documents_or_rounds_have_no_interval() -> None:
    """The estimate is told all the same."""
    assert mean_over_documents([1.0, 3.0], [1.0, 3.0]) == Estimate(2.5)
    assert ratio_over_rounds([2.0, 8.0], [1.0, 4.0]) == Estimate(2.0)


def test_ratios_are_paired_by_round() -> None:
    """Rounds that drift by half leave an interval that is narrow; unpaired it would be wide."""
    base = [100.0, 60.0, 140.0, 80.0, 120.0]
    noise = [1.01, 0.99, 1.0, 1.02, 0.98]
    ours = [2 * value * factor for value, factor in zip(base, noise, strict=True)]
    estimate = ratio_over_rounds(ours, base)
    logs = [math.log(one / other) for one, other in zip(ours, base, strict=True)]
    slow = ttest_1samp(logs, 0.0)
    interval = slow.confidence_interval(0.95)
    assert estimate.p == pytest.approx(slow.pvalue)
    assert estimate.low == pytest.approx(math.exp(interval.low))
    assert estimate.high == pytest.approx(math.exp(interval.high))
    assert estimate.high is not None
    assert estimate.high < 2.05
    assert estimate.value == pytest.approx(math.exp(sum(logs) / 5))
    shuffled = ratio_over_rounds(ours, base[::-1])
    assert shuffled.high is not None
    assert shuffled.high > 2.5


def test_holm_steps_down() -> None:
    """By hand: times 4, 3, 2 and 1 in order of size, none smaller than one before."""
    adjusted = holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()
    assert holm([0.6, 0.7]) == (1.0, 1.0)


def test_percentiles_need_twenty_samples_beyond_them() -> None:
    """One sample too few, and nothing is shown."""
    assert [needed(p) for p in (0.5, 0.9, 0.95, 0.99)] == [40, 200, 400, 2000]
    assert percentile([float(x) for x in range(399)], 0.95) is None
    assert percentile([float(x) for x in range(401)], 0.95) == pytest.approx(380.0)
