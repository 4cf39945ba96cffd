"""Distributions of lengths: what is drawn, and what is refused."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from server.bench.lengths import LengthError, parse_lengths

DISTRIBUTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uniform:10:50": lambda edge: stats.randint(10, 51).cdf(edge - 0.5),
    "normal:300:40": stats.norm(300, 40).cdf,
    "lognormal:200:0.5": stats.lognorm(0.5, scale=200).cdf,
}


def distance(drawn: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    """Largest difference of the drawn whole numbers' distribution to the continuous one."""
    edges = np.arange(drawn.min(), drawn.max() + 2) - 0.5
    empirical = np.searchsorted(np.sort(drawn), edges) / drawn.size
    return float(np.abs(empirical - cdf(edges)).max())


@pytest.mark.parametrize("text", DISTRIBUTIONS)
def test_lengths_are_drawn_from_the_distribution(text: str) -> None:
    """Against scipy's; each of the others is told apart."""
    rng = random.Random(1)  # noqa: S311 - no secret
    lengths = parse_lengths(text, "--prompt-tokens")
    drawn = np.array([lengths.draw(rng) for _ in range(5000)])
    found = {name: distance(drawn, cdf) for name, cdf in DISTRIBUTIONS.items()}
    assert found.pop(text) < 1.63 / math.sqrt(drawn.size)  # Kolmogorov's bound at 1 %
    assert min(found.values()) > 0.1


@pytest.mark.parametrize(
    "text", ["1", "77", "1048576", "uniform:1:1048576", "normal:8:2.5", "lognormal:100:10"]
)
def test_what_is_written_is_read_and_every_draw_is_a_length(text: str) -> None:
    """Whatever the distribution's tails."""
    rng = random.Random(0)  # noqa: S311 - no secret
    lengths = parse_lengths(text, "--prompt-tokens")
    assert str(lengths) == text
    drawn = [lengths.draw(rng) for _ in range(2000)]
    assert 1 <= min(drawn) <= max(drawn) <= 1 << 20
    if text.isdecimal():
        assert set(drawn) == {int(text)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-3",
        "1.5",
        "many",
        "1048577",
        "uniform",
        "uniform:5",
        "uniform:9:3",
        "uniform:1.5:3",
        "uniform:0:3",
        "normal:nan:1",
        "normal:5:inf",
        "normal:5:-1",
        "lognormal:0.5:1",
        "lognormal:5:11",
        "poisson:5:1",
        "1:2:3:4",
    ],
)
def test_what_is_no_distribution_is_refused_with_the_option(text: str) -> None:
    """The sentence names the option, what was given, and what can be."""
    with pytest.raises(LengthError) as refused:
        parse_lengths(text, "--output-tokens")
    assert str(refused.value).startswith(f"--output-tokens: {text!r} is no distribution")
    assert "lognormal:MEDIAN:SIGMA" in str(refused.value)
