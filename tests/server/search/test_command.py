"""The command: what it prints and writes, how it goes on, and how it ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from artifacts.protocol import Progress, StageBegun
from server.cli import application
from server.config.sources import load
from server.errors import OptimizerError
from server.exit_codes import ExitCode
from server.search.display import Display, duration
from server.search.objectives import OBJECTIVES
from server.search.records import Kind, Record
from server.search.records import Result as TrialResult
from server.search.search import Status
from tests.server.search.synthetic import HAND_WRITTEN, SPACE, FormulaOptimizer, FormulaProber

Run = Callable[..., Result]


@pytest.fixture
def optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FormulaOptimizer:
    """Stands in for the child, as a formula does for the server that is measured."""
    optimizer = FormulaOptimizer(tmp_path / "store")
    monkeypatch.setattr("server.optimizer.ChildOptimizer", lambda: optimizer)
    monkeypatch.setattr("server.search.probing.ServerProber", FormulaProber)
    for name in [name for name in os.environ if name.startswith("INFERENCE_UNLIMITED_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return optimizer


@pytest.fixture
def run(tmp_path: Path, optimizer: FormulaOptimizer) -> Run:
    """Search a config of a hand-written variant and a space."""
    del optimizer

    def invoke(*arguments: str, **content: Any) -> Result:
        config = {
            "model": "m",
            "store": str(tmp_path / "store"),
            "variants": {"hand": HAND_WRITTEN, "lean": SPACE},
            "search": {"trials": 5},
            "log": {"format": "json"},
        }
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump({**config, **content}, sort_keys=False))
        return CliRunner().invoke(application(), ["search", str(path), *arguments])

    return invoke


def test_it_writes_a_config_and_all_trials_and_says_what_it_found(run: Run, tmp_path: Path) -> None:
    """The whole way, and then once more for further trials."""
    done = run("--trials", "4", "--seed", "3")
    assert done.exit_code == ExitCode.OK, done.output
    assert "The search ended because all trials are finished." in done.output
    assert "to the Pareto front of the hand-written variants" in done.output
    assert "serve search.yaml" in done.output
    written = load(tmp_path / "search.yaml", environment={}, flags={})
    assert next(iter(written.variants)) == "hand"
    content = json.loads((tmp_path / "search.json").read_text())
    counted = {"measured", "over_budget", "failed"}
    assert sum(one["kind"] in counted for one in content["trials"]) == 4
    assert list((tmp_path / "store" / "studies").glob("c-*.log"))

    more = run("--trials", "6", "--seed", "3")
    assert more.exit_code == ExitCode.OK, more.output
    assert "going on with 4 finished trials" in more.output
    content = json.loads((tmp_path / "search.json").read_text())
    assert sum(one["kind"] in counted for one in content["trials"]) == 6


def test_the_study_lies_where_it_is_told(run: Run, tmp_path: Path) -> None:
    """By flag, relative to where the command runs; by config, relative to the config."""
    assert run("--storage", "my.log").exit_code == ExitCode.OK
    assert (tmp_path / "my.log").exists()
    assert run(search={"trials": 2, "storage": "there/study.log"}).exit_code == ExitCode.OK
    assert (tmp_path / "there" / "study.log").exists()


def test_a_space_that_is_wrong_ends_with_2_and_every_path(run: Run) -> None:
    """Nothing is built."""
    space = [{"squeeze": {"x": {"low": 2, "high": 1}, "y": {"choice": []}}}]
    done = run(variants={"lean": space})
    assert done.exit_code == ExitCode.USAGE
    assert "variants.lean.chain[0].squeeze.x.low" in done.output
    assert "variants.lean.chain[0].squeeze.y.choice" in done.output


def test_somebody_s_file_is_not_overwritten(run: Run, optimizer: FormulaOptimizer) -> None:
    """Refused before anything is built."""
    done = run("--out", "c.yaml")
    assert done.exit_code == ExitCode.FAILURE
    assert "no search has written it" in done.output
    assert optimizer.built == []


def test_a_machine_that_fails_ends_with_1_and_its_words(
    run: Run, optimizer: FormulaOptimizer
) -> None:
    """A full disk is nobody's chain."""
    optimizer.failure = OptimizerError("A disk is full.", code="disk_full", remedy="Free some.")
    done = run()
    assert done.exit_code == ExitCode.FAILURE
    assert "A disk is full. Free some." in done.output


def test_a_search_of_nothing_but_failures_ends_with_1(run: Run, tmp_path: Path) -> None:
    """And its trials tell why."""
    done = run("--trials", "20", variants={"lean": [{"squeeze": {"x": SPACE[0]["squeeze"]["x"],
                                                                 "y": 7}}]})  # fmt: skip
    assert done.exit_code == ExitCode.FAILURE
    assert "one trial after the other failed" in done.output
    assert "seven is odd" in (tmp_path / "search.json").read_text()


def test_ctrl_c_reports_what_there_is(
    run: Run, optimizer: FormulaOptimizer, tmp_path: Path
) -> None:
    """The first signal; the command ends well."""
    building = optimizer.build

    async def interrupted(*arguments: Any, **options: Any) -> Any:
        if len(optimizer.built) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return await building(*arguments, **options)

    optimizer.build = interrupted  # type: ignore[method-assign]
    optimizer._build_s = 0.1
    done = run()
    assert done.exit_code == ExitCode.OK, done.output
    assert "The search ended because it was stopped." in done.output
    assert "not confirmed" in done.output or "adds nothing" in done.output
    assert (tmp_path / "search.yaml").exists()


def test_the_second_ctrl_c_only_ends(run: Run, optimizer: FormulaOptimizer, tmp_path: Path) -> None:
    """Nothing is written; what is finished stays in the study."""
    building = optimizer.build

    async def interrupted(*arguments: Any, **options: Any) -> Any:
        if len(optimizer.built) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        return await building(*arguments, **options)

    optimizer.build = interrupted  # type: ignore[method-assign]
    optimizer._build_s = 0.1
    done = run()
    assert done.exit_code == ExitCode.FAILURE
    assert "start again to go on" in done.output
    assert not (tmp_path / "search.yaml").exists()


def test_the_display_follows_a_search() -> None:
    """One line of figures per trial, and on a terminal a bar with the time left."""
    record = Record(
        3,
        TrialResult(Kind.MEASURED, measures={"kl_mean": 0.01, "decode_1": 123.4}),
        "lean",
        HAND_WRITTEN,
    )
    with capture_logs() as log, Display(list(OBJECTIVES.values())) as display:
        display.phase("hand-written", 1, 2, "variant hand")
        display.status(Status(2, 8, 150.0, "trial 4: squeeze", record))
        display.event(StageBegun(stage="quantize", index=2, count=4, reused=True))
        (task,) = display._progress.tasks
        assert (task.completed, task.total) == (2, 8)
        assert task.fields["left"] == "2 min left"
        assert "trial 4: squeeze | quantize (reused)" in task.fields["doing"]
        display.event(Progress(stage="quantize", fraction=0.5))
        assert "quantize 50%" in display._progress.tasks[0].fields["doing"]
    (line,) = log
    assert (line["decode_1"], line["left"]) == ("123", "2 min")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (150, "2 min"), (7_500, "2 h 5 min")]
)
def test_durations_are_rough(seconds: float, words: str) -> None:
    """Nobody needs the seconds of an hour."""
    assert duration(seconds) == words
