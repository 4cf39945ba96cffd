"""The bench of restructured models: its variants and its bar, without running anything."""

from __future__ import annotations

import pytest

from benchmarks import structure
from benchmarks.samples import Measure, Sample, Samples
from benchmarks.shapes import SHAPES
from optimizers.spec import parse_variant


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_every_variant_is_a_chain(shape: structure.Shape) -> None:
    """None reads a text; depth leaves out a quarter of the layers."""
    for name, chain in structure.chains(shape).items():
        parsed = parse_variant(name, chain)
        assert not parsed.errors
        assert not any(stage.calibrates for stage in parsed.stages)
    (depth,) = structure.chains(shape)[structure.DEPTH]
    assert depth["restructure"]["drop"] >= shape.layers / 4


@pytest.mark.parametrize(("gain", "met"), [(1.3, True), (1.1, False)])
def test_the_bar_is_a_ratio_of_medians_of_each_round(gain: float, *, met: bool) -> None:
    """Tokens per second count up, seconds count down, and a drift of the machine cancels out."""
    samples = Samples()
    for round_, drift in enumerate((1.0, 3.0, 0.5)):
        for name, factor in ((structure.ORIGINAL, 1.0), (structure.DEPTH, gain)):
            speed = drift * factor
            samples.add(Sample(name, Measure.ONE_STREAM, round_, 20 * speed))
            samples.add(Sample(name, Measure.FIRST_TOKEN, round_, 0.5 / speed))
    assert [verdict for _, verdict in structure.judged(samples)] == [met, met]
    for measure in (Measure.ONE_STREAM, Measure.FIRST_TOKEN):
        found = structure.speedup(samples, structure.DEPTH, measure)
        assert found is not None
        assert found.low == pytest.approx(gain)
        assert found.high == pytest.approx(gain)
    cells = structure.table(SHAPES["tiny"], samples).rows
    assert f"{gain:.2f} ({gain:.2f} to {gain:.2f})" in cells[1][1]


def test_what_was_not_measured_meets_no_bar() -> None:
    """A variant that failed cannot pass."""
    assert [verdict for _, verdict in structure.judged(Samples())] == [False, False]
