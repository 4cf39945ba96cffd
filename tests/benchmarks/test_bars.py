"""Bars pass and fail where they should."""

from __future__ import annotations

import pytest

from benchmarks import lineup
from benchmarks.bars import BARS, judge
from benchmarks.samples import Measure, Sample, Samples

_FLOAT32_ONE_STREAM = 0
_OWN_GREEDY = -2


def _verdict(samples: Samples, agreement: dict[str, int], index: int) -> str:
    return [*judge(samples, agreement, wanted=32)][index].verdict


def _one_stream(ratio: float) -> Samples:
    return Samples(
        Sample(name, Measure.ONE_STREAM, 0, value)
        for name, value in ((lineup.BASELINE, 100.0 * ratio), (lineup.OPTIMUM, 100.0))
    )


@pytest.mark.parametrize(("ratio", "verdict"), [(1.6, "pass"), (1.59, "FAIL")])
def test_ratio_bar_passes_from_its_limit_on(ratio: float, verdict: str) -> None:
    """1.6 times is enough, less is not."""
    assert _verdict(_one_stream(ratio), {}, _FLOAT32_ONE_STREAM) == verdict


@pytest.mark.parametrize("name", [lineup.BASELINE, lineup.OPTIMUM])
def test_other_tokens_make_a_bar_worthless(name: str) -> None:
    """However fast, a contender that says something else is not compared."""
    assert _verdict(_one_stream(9.0), {name: 31}, _FLOAT32_ONE_STREAM) == "not comparable"


def test_bar_without_figures_is_not_passed() -> None:
    """What was not measured is said to be so, for every bar."""
    verdicts = [judged.verdict for judged in judge(Samples(), {}, wanted=32)]
    assert verdicts == ["not measured"] * len(BARS)


@pytest.mark.parametrize(("seconds", "verdict"), [(0.49e-3, "pass"), (0.5e-3, "FAIL")])
def test_limit_bar_is_strict(seconds: float, verdict: str) -> None:
    """Below half a millisecond, not at it."""
    own = Samples([Sample(lineup.ENGINE_BASELINE, Measure.OWN_GREEDY, 0, seconds)])
    assert _verdict(own, {}, _OWN_GREEDY) == verdict


def test_every_bar_names_contenders_of_the_lineup() -> None:
    """A bar about nobody could never fail."""
    for bar in BARS:
        assert bar.contender in lineup.LABELS
        assert getattr(bar, "base", lineup.OPTIMUM) in lineup.LABELS
