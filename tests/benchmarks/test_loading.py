"""What counts as meanwhile, and how the ratio is judged."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.loading import FEWEST, Turn, chains, main, ratios, turn_of
from server.bench.attempt import Attempt


def answer(due_s: float, *arrivals: tuple[float, int]) -> Attempt:
    return Attempt("serving", "ok", due_s, arrivals[-1][0], 8, arrivals)


def turn(first_s: float, gap_s: float, count: int = FEWEST, failed: int = 0) -> Turn:
    return Turn([first_s] * count, [gap_s] * count, failed, 0.0)


def test_only_what_came_while_something_was_loaded_counts() -> None:
    """A request that was due before, and tokens that came between two loads, are left out."""
    attempts = [
        answer(0.0, (1.5, 1), (2.5, 1), (4.5, 1), (6.5, 2)),
        answer(6.0, (6.5, 1)),
        Attempt("serving", "unavailable", 6.0, 6.1, 8),
    ]
    found = turn_of(attempts, [(1.0, 3.0), (5.0, 7.0)], 0.25, loads=2)
    assert found == Turn([0.5], [1.0, 1.0, 1.0], 1, 0.25, 2)


def test_ratios_are_taken_within_rounds() -> None:
    """A machine that slows down between rounds changes none."""
    gaps, firsts = ratios(
        [(turn(0.1, 0.01), turn(0.12, 0.02)), (turn(0.2, 0.02), turn(0.24, 0.02))]
    )
    assert gaps.rounds == pytest.approx((2.0, 1.0))
    assert firsts.rounds == pytest.approx((1.2, 1.2))
    assert str(gaps).endswith("1.50 (1.00 to 2.00, 2 rounds); at most 1.5: pass")


def test_a_ratio_above_the_bar_fails_and_too_few_figures_give_none() -> None:
    """Neither is dressed up."""
    slow, _ = ratios([(turn(0.1, 0.01), turn(0.1, 0.016))])
    assert str(slow).endswith("at most 1.5: FAIL")
    few, _ = ratios([(turn(0.1, 0.01), turn(0.1, 0.016, FEWEST - 1))])
    assert few.rounds == ()
    assert "too few figures" in str(few)


def test_no_two_chains_share_a_beginning() -> None:
    """Or the second one's build would begin in the middle."""
    first = [str(chain[0]) for chain in islice(chains(), 100)]
    assert len(set(first)) == 100


@pytest.mark.slow
def test_the_whole_bench_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With figures that say nothing: both turns, no failure, and each ratio with its verdict."""
    out = tmp_path / "loading.json"
    options = "--rounds 1 --seconds 10 --rate 3 --new-tokens 16 --quiet-seconds 0 --out"
    monkeypatch.setattr(sys, "argv", ["loading", *options.split(), str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    ((before, during),) = json.loads(out.read_text(encoding="utf-8"))["rounds"]
    assert before["loads"] == 0 < during["loads"]
    assert min(len(before["gaps_s"]), len(during["gaps_s"])) >= FEWEST
    assert "at most 1.5: " in capsys.readouterr().out
