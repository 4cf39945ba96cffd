"""Results survive a file, and tables say what must be said."""

from __future__ import annotations

from pathlib import Path

from benchmarks import lineup
from benchmarks.report import markdown, tables
from benchmarks.samples import Measure, Sample, Samples
from benchmarks.serving_results import Results, read_results
from benchmarks.settings import Settings
from server.comparison.machine import Machine


def _results(*, others_cores: float = 0.0, agreement: int = 32) -> Results:
    samples = Samples()
    for name, value in ((lineup.BASELINE, 40.0), (lineup.OPTIMUM, 20.0)):
        for measure in (Measure.ONE_STREAM, Measure.EIGHT_STREAMS, Measure.FIRST_TOKEN):
            samples.add(Sample(name, measure, 0, value, others_cores, 0.1, 0.9))
    return Results(
        created="2026-11-23T00:00:00+00:00",
        machine=Machine(
            "Some processor", "x86_64-avx2", ("avx2",), 2, 8 << 30, "Linux", "3.11", {"numpy": "2"}
        ),
        settings=Settings(1, 32, 64, 256, 1, 2, 0.0),
        shape="tiny",
        parameters=1_000_000,
        versions={lineup.OPTIMUM: {"optimum": "2.1.0"}},
        variants={lineup.BASELINE: {"kl_mean": 0.0, "top1_agreement": 1.0, "size_bytes": 1 << 20}},
        agreement={lineup.BASELINE: 32, lineup.OPTIMUM: agreement},
        agreement_wanted=32,
        failures={},
        samples=samples,
    )


def test_results_survive_a_file(tmp_path: Path) -> None:
    """What is read shows the same as what was written."""
    results = _results()
    results.write(tmp_path / "results.json")
    read = read_results(tmp_path / "results.json")
    assert markdown(read) == markdown(results)
    assert [*read.samples] == [*results.samples]
    assert read.machine == results.machine


def test_peer_table_shows_medians_and_ratios() -> None:
    """Forty over twenty is 2.00."""
    peers = next(tables(_results()))
    assert peers.rows[0][:3] == (lineup.LABELS[lineup.BASELINE], "40.0", "2.00")


def test_every_row_is_as_long_as_its_header() -> None:
    """A table that is not rectangular is no Markdown table."""
    for table in tables(_results()):
        assert table.rows or table.title.startswith("What gRPC costs")
        assert all(len(row) == len(table.header) for row in table.rows)


def test_disturbed_figures_are_marked() -> None:
    """Figures from a busy machine say so, and those from a quiet one do not."""
    assert "DISTURBED: 6 of 6 figures" in markdown(_results(others_cores=0.5))
    assert "DISTURBED" not in markdown(_results())


def test_other_tokens_are_marked_in_the_table() -> None:
    """A row that is not comparable is not shown as if it were."""
    assert "optimum ORTModelForCausalLM, float32 (not comparable)" in markdown(
        _results(agreement=3)
    )
    assert "not comparable" not in markdown(_results())
