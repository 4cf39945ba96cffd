"""What the bench against peers makes of figures: paces, loads, what may be compared, and bars."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from artifacts.manifest import GraphSpec
from benchmarks.child import ChildError
from benchmarks.environments import python_with
from benchmarks.ours import Weights
from benchmarks.peer_lineup import (
    ADAPTIVE,
    GPTQ,
    GPTQ_HEAD4,
    INT4,
    INT8_FITTED,
    INT8_GPTQ,
    NAMES,
    RECIPES,
    RUNGS,
    chosen_for_load,
    is_fitted,
    laid_out,
    streams,
)
from benchmarks.peer_quality import mean_kl, windows
from benchmarks.peer_report import markdown, notes, tables, write_plots
from benchmarks.peer_results import PeerResults, read_results
from benchmarks.peer_turns import MEMORY, pace
from benchmarks.poisson import moments, point
from benchmarks.samples import Measure, Sample, Samples
from benchmarks.settings import Settings
from benchmarks.workers.schedule import Stream, answer_of
from server.comparison.machine import Machine
from tests.optimizers.onnx_stage import run_stage

QUALITY = {
    INT4: 0.010,
    GPTQ_HEAD4: 0.030,
    "llama.cpp-Q4_0": 0.020,
    "openvino-int4": 0.0095,
    "genai-int4": 0.005,
}


def results() -> PeerResults:
    """Two rows of ours and three rungs, twice."""
    samples = Samples()
    for round_, drift in enumerate((1.0, 0.5)):
        for name, value in (
            (INT4, 60.0),
            (GPTQ_HEAD4, 90.0),
            ("llama.cpp-Q4_0", 50.0),
            ("openvino-int4", 40.0),
            ("genai-int4", 30.0),
        ):
            samples.add(Sample(name, Measure.DECODE_1, round_, drift * value))
        samples.add(Sample(MEMORY, Measure.BANDWIDTH, round_, drift * 20e9))
        samples.add(Sample(INT4, Measure.RESIDENT, round_, 700 << 20))
        samples.add(Sample(INT4, Measure.WARM_START, round_, 2.5))
    answer = {"arrivals_s": [[1.5, 1.6, 1.8], [3.0, 3.5, 4.0]], "seconds": 4.0}
    load = point(answer, [1.0, 2.0], contender=INT4, round_=0, share="70% of its own", rate=1.0)
    return PeerResults(
        created="2026-11-25T00:00:00+00:00",
        machine=Machine(
            "Some processor", "x86_64-avx2", ("avx2",), 2, 8 << 30, "Linux", "3.11", {"numpy": "2"}
        ),
        settings=Settings(2, 32, 64, 2048, 1, 2, 0.0),
        shape="tiny",
        parameters=1_000_000,
        versions={"genai-int4": {"onnxruntime-genai": "0"}},
        quality=QUALITY,
        weights={INT4: Weights(400 << 20, bytes_per_token=300_000_000, kv_bytes_per_token=1 << 10)},
        capacities={INT4: 2.0},
        loads=[load],
        failures={},
        samples=samples,
    )


def test_pace_counts_while_all_streams_run() -> None:
    """From the last first token to the first last one; what comes before and after counts not."""
    assert pace([[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]]) == pytest.approx(4 / 2)
    # A prompt that is computed while others decode does not slow what is called decoding.
    assert pace([[0.0, 5.0, 6.0, 7.0], [5.0, 6.0, 7.0, 8.0]]) == pytest.approx(4 / 2)
    # Streams that never run all at the same time.
    assert pace([[0.0, 1.0], [2.0, 4.0]]) == pytest.approx(3 / 4)
    with pytest.raises(ChildError, match="at once"):
        pace([[1.0, 1.0]])


def test_arrivals_are_independent_and_as_many_as_the_rate_says() -> None:
    """The same for everybody: from a seed."""
    found = np.array(moments(50.0, 100.0, 3))
    assert found.tolist() == moments(50.0, 100.0, 3) != moments(50.0, 100.0, 4)
    gaps = np.diff(found)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.1)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # exponential


def test_a_load_is_seen_as_its_users_see_it() -> None:
    """From when a request came, not from when it was taken."""
    (load,) = results().loads
    assert load.first_p50_s == pytest.approx((0.5 + 1.0) / 2)
    assert load.between_p50_s == pytest.approx((0.2 + 0.5) / 2)
    assert load.goodput == pytest.approx(1 / 4)  # the second one's tokens are too far apart


def test_only_what_is_as_good_is_compared() -> None:
    """A row against the hardest rung whose KL it keeps to, by each round's ratio."""
    found = results()
    assert found.comparable(INT4, "openvino-int4")  # 0.010 <= 1.1 * 0.0095
    assert not found.comparable(INT4, "genai-int4")
    assert not found.comparable(INT4, "openvino-int8")  # nobody knows
    best = found.best(Measure.DECODE_1, INT4)
    assert best is not None
    assert (best[0], best[1].median) == ("llama.cpp-Q4_0", pytest.approx(1.2))
    assert found.best(Measure.DECODE_1, GPTQ_HEAD4) is None  # worse than all of them
    hardest = found.hardest(Measure.DECODE_1)
    assert hardest is not None
    assert hardest[:2] == (INT4, "llama.cpp-Q4_0")
    # A faster row that is good enough for one rung leaves another as the hardest.
    nearer = replace(found, quality={**QUALITY, GPTQ_HEAD4: 0.021}).hardest(Measure.DECODE_1)
    assert nearer is not None
    assert nearer[:2] == (INT4, "openvino-int4")
    assert nearer[2].median == pytest.approx(1.5)


def test_kl_is_that_of_the_formula() -> None:
    """Of logits and log-probabilities alike; nothing of the first positions."""
    wanted = np.log(np.array([[[0.5, 0.5]] * 9]), dtype=np.float32)
    given = np.log(np.array([[[0.9, 0.1]] * 8 + [[0.25, 0.75]]]), dtype=np.float32)
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert mean_kl(wanted + 3, given) == pytest.approx(expected, rel=1e-5)
    assert mean_kl(wanted, wanted) == 0
    assert len({tuple(window) for window in windows()}) == len(windows()) > 1


def test_results_survive_a_file_and_tables_are_rectangular(tmp_path: Path) -> None:
    """What is read shows the same as what was written."""
    written = results()
    written.write(tmp_path / "results.json")
    read = read_results(tmp_path / "results.json")
    assert markdown(read) == markdown(written)
    for table in tables(read):
        assert table.rows
        assert all(len(row) == len(table.header) for row in table.rows)
    decode = next(table for table in tables(read) if table.title.startswith("Bars")).rows[1]
    assert decode[3:] == ("1.2", "1.20 (1.20 to 1.20)", "pass")
    limits = next(table for table in tables(read) if table.title.startswith("Our rows by them"))
    assert [row[2:] for row in limits.rows] == [
        ("at least 75%", "90%", "pass"),  # 60 tokens of 300 MB in 20 GB, in each round
        ("772", "700", "pass"),  # 1.3 x 400, 16 streams of 96 tokens, 250
        ("2", "2.50", "FAIL"),
    ]
    write_plots(read, tmp_path / "plots.html")
    assert "llama.cpp Q4_0" in (tmp_path / "plots.html").read_text(encoding="utf-8")


def test_everybody_has_a_name_of_their_own() -> None:
    """And those that stream are known."""
    assert len({*NAMES}) == len(RECIPES) + len(RUNGS)
    assert streams(INT4)
    assert streams("llama.cpp-Q4_0")
    assert not streams("optimum")


def test_random_weights_are_laid_out_as_fitted_ones_are(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """Rounded instead, with every tensor as large: a step then costs the same."""
    fitted = [name for name in NAMES if is_fitted(name)]
    assert fitted == [GPTQ, GPTQ_HEAD4, ADAPTIVE, INT8_GPTQ, INT8_FITTED]
    assert [*laid_out(RECIPES[INT8_FITTED])[0]] == ["quantize"]
    for name in (GPTQ_HEAD4, INT8_FITTED):
        layouts = []
        for number, chain in enumerate((RECIPES[name], laid_out(RECIPES[name]))):
            folder = tmp_path / f"{name}-{number}"
            folder.mkdir()
            run_stage(chain[-1]["quantize"], *tiny_llama_export, folder)
            graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
            tensors = [(tuple(one.dims), one.data_type) for one in graph.initializer if one.dims]
            layouts.append((sorted(tensors), [node.op_type for node in graph.node]))
        assert layouts[0] == layouts[1]


def test_a_rung_that_no_row_is_as_good_as_is_told() -> None:
    """It cannot be beaten by leaving it out."""
    found = results()
    assert found.unmatched() == ["genai-int4"]
    better = replace(found, quality={**QUALITY, INT4: 0.005})
    assert better.unmatched() == []
    told = [[note for note in notes(one) if "NOT COMPARED" in note] for one in (found, better)]
    assert ["onnxruntime-genai" in note for note in told[0]] == [True]
    assert told[1] == []


def test_a_stream_that_ends_early_is_no_figure() -> None:
    """Or whoever says less would be faster."""
    stream = Stream()
    stream.add([4, 5], 0.5)
    assert answer_of([stream], 10.0, 2)["first_token_at_s"] == 10.5
    with pytest.raises(RuntimeError, match="after 2 of 3"):
        answer_of([stream], 10.0, 3)


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    """With the way around it; one that does is taken as it is."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("./no-such-package\n", encoding="utf-8")
    with pytest.raises(ChildError, match="--without"):
        python_with(tmp_path / "venv", requirements, "import no_such_package")
    assert python_with(tmp_path / "venv", requirements, "import pip").exists()


def test_the_worker_that_becomes_a_server_makes_what_is_missing(tmp_path: Path) -> None:
    """And makes nothing where the file is there."""
    target = tmp_path / "model.gguf"
    target.write_bytes(b"")
    command = [sys.executable, "-m", "benchmarks.workers.llama_server", "source", "programs"]
    done = subprocess.run(
        [*command, "model", str(target), "Q4_0", "/bin/echo", "served"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "served\n")  # all that it says goes to the log


def test_under_load_our_row_is_as_good_as_the_rungs_it_meets() -> None:
    """A faster one that is not as good stays away; what was not judged does too."""
    capacities = {
        INT4: 1.0,
        GPTQ_HEAD4: 3.0,
        "llama.cpp-Q4_0": 2.0,
        "llama.cpp-Q8_0": 1.5,
        "openvino-int4": 1.0,
    }
    assert chosen_for_load(capacities, QUALITY) == {
        "llama.cpp-Q4_0": 2.0,
        "openvino-int4": 1.0,
        INT4: 1.0,
    }
    assert INT4 not in chosen_for_load(capacities, {})
