"""The bench of the generator itself: real requests to a server that answers at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import generator


def test_rates_are_tried_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row each; what was sent was answered with all of its tokens."""
    rates = ("--first-rate", "20", "--highest-rate", "40")
    sizes = ("--seconds", "1", "--output-tokens", "3")
    assert generator.main([*rates, *sizes, "--work", str(tmp_path)]) == 0
    title, _, header, _, *rows = capsys.readouterr().out.splitlines()
    assert "3 tokens a request" in title
    assert header.count("|") == rows[0].count("|")
    assert len(rows) in {1, 2}  # it ends early where the generator is late
    cells = [cell.strip() for cell in rows[0].split("|")]
    assert cells[1] == "20"
    assert float(cells[3]) == pytest.approx(3 * float(cells[2]), abs=3)
