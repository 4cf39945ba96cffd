"""Medians, paired ratios and the client's share."""

from __future__ import annotations

import pytest

from benchmarks.samples import Measure, Sample, Samples, spread


def _samples(*figures: tuple[str, int, float]) -> Samples:
    return Samples(
        Sample(name, Measure.ONE_STREAM, number, value) for name, number, value in figures
    )


def test_ratio_pairs_rounds_so_that_drift_cancels() -> None:
    """A machine that halves its speed between rounds changes no ratio."""
    drifting = _samples(("a", 0, 200.0), ("b", 0, 100.0), ("a", 1, 100.0), ("b", 1, 50.0))
    ratio = drifting.ratio(Measure.ONE_STREAM, "a", "b")
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high, ratio.count) == (2.0, 2.0, 2.0, 2)


def test_ratio_of_a_round_takes_the_median_of_its_figures() -> None:
    """One slow figure among the repeats of a turn does not decide."""
    repeated = _samples(("a", 0, 1.0), ("a", 0, 30.0), ("a", 0, 32.0), ("b", 0, 10.0))
    ratio = repeated.ratio(Measure.ONE_STREAM, "a", "b")
    assert ratio is not None
    assert ratio.median == 3.0


def test_ratio_needs_a_round_that_both_have() -> None:
    """Figures of different rounds are never divided by each other."""
    apart = _samples(("a", 0, 1.0), ("b", 1, 1.0))
    assert apart.ratio(Measure.ONE_STREAM, "a", "b") is None


def test_measures_are_kept_apart() -> None:
    """Asking for another measure gives nothing."""
    assert _samples(("a", 0, 1.0)).spread("a", Measure.FIRST_TOKEN) is None


def test_client_share_is_of_client_and_server_together() -> None:
    """Half a core beside one and a half is a quarter."""
    sample = Sample("a", Measure.ONE_STREAM, 0, 1.0, client_cores=0.5, server_cores=1.5)
    assert Samples([sample]).client_share("a", Measure.ONE_STREAM) == pytest.approx(0.25)


def test_spread_of_nothing_is_nothing() -> None:
    """A figure that was not taken is not zero."""
    assert spread([]) is None
