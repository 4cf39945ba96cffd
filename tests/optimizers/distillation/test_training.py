"""Trainings that are killed, that run out of time, and that leave nothing behind."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from artifacts.protocol import BuildRequest, PlanRequest, Texts
from artifacts.store import Store
from optimizers.build import Build
from optimizers.distillation import checkpoints
from optimizers.distillation.checkpoints import Mark, find_last, write_mark
from optimizers.distillation.schedule import rate
from optimizers.distillation.texts import Split
from optimizers.distillation.trainer import DistillationTrainer, Watch
from optimizers.distillation.training import Regime, rows_at_once, train
from optimizers.events import Events
from optimizers.plan import plan
from optimizers.torch_models import load_module

if TYPE_CHECKING:
    from tests.optimizers.distillation.conftest import Bench

PRUNE = {"prune": {"amount": 0.5}}
STEPS, BATCH = 12, 4
FIELDS = {"tokens": STEPS * BATCH * 64, "batch_size": BATCH, "learning_rate": 3e-3, "lora_rank": 4}


class _PlantedError(Exception):
    """What a power cut is here."""


def _count_losses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted = []
    compute = DistillationTrainer.compute_loss

    def counting(self: Any, *args: Any, **more: Any) -> Any:
        counted.append(self.state.global_step)
        return compute(self, *args, **more)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", counting)
    return counted


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_a_killed_training_goes_on_where_it_was(
    weights: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the weights, bit for bit, that it would have come to; half a checkpoint is not used."""
    chain = [PRUNE, {"distill": {"method": "recover", "weights": weights, **FIELDS}}]
    bench.apply([PRUNE], bench.original.folder, tmp_path / "pruned")
    whole = bench.apply(chain, tmp_path / "pruned", tmp_path / "whole")

    saved: list[int] = []
    on_save = Watch.on_save

    def die(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if saved:
            raise _PlantedError
        saved.append(state.global_step)
        on_save(self, args, state, control, **more)

    with monkeypatch.context() as planted:
        planted.setattr(Watch, "on_save", die)
        with pytest.raises(_PlantedError):
            bench.apply(chain, tmp_path / "pruned", tmp_path / "cut")
    (tmp_path / "cut").rmdir()
    left = sorted(path.name for path in (bench.layout.training / "cut").iterdir())
    assert len(left) == 2  # one is whole, and one has no mark
    counted = _count_losses(monkeypatch)
    outcome = bench.apply(chain, tmp_path / "pruned", tmp_path / "cut")

    assert counted == list(range(saved[0], STEPS))
    assert f"{STEPS * BATCH * 64:,} tokens" in outcome.notes[0]
    assert outcome.notes[0].split("KL")[1] == whole.notes[0].split("KL")[1]
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == two


def _train(bench: Bench, folder: Path, *, clock: Any, limit_s: float = 600.0) -> Any:
    windows = tuple(np.random.default_rng(7).integers(0, 256, (60, 64)))
    regime = Regime(
        tokens=FIELDS["tokens"],
        limit_s=limit_s,
        learning_rate=1e-3,
        batch_size=BATCH,
        temperature=1.0,
        on_policy=0.0,
        seed=0,
    )
    folder.mkdir(exist_ok=True)
    return train(
        load_module(bench.original.folder),
        load_module(bench.original.folder),
        Split(windows[4:], windows[:4]),
        regime,
        masks={},
        folder=folder,
        report=lambda *_: None,
        clock=clock,
    )


def test_it_ends_when_its_time_is_over(bench: Bench, tmp_path: Path) -> None:
    """After the step during which that happened; the seconds before a resume count."""
    ticks = itertools.count()
    trained = _train(bench, tmp_path / "run", clock=lambda: 10.0 * next(ticks), limit_s=100.0)
    assert BATCH * 64 <= trained.tokens < FIELDS["tokens"] / 2
    assert trained.seconds >= 100.0
    again = _train(bench, tmp_path / "run", clock=lambda: 0.0, limit_s=100.0)
    assert again.tokens == trained.tokens
    assert again.seconds >= 100.0


def test_the_learning_rate_falls_with_what_is_over_first(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tokens where there is time enough, else with the time; it is low when that ends."""
    seen: list[float] = []
    on_step_end = Watch.on_step_end

    def noting(self: Any, *args: Any, lr_scheduler: Any, **more: Any) -> None:
        seen.append(lr_scheduler.get_last_lr()[0])
        on_step_end(self, *args, **more)

    monkeypatch.setattr(Watch, "on_step_end", noting)
    _train(bench, tmp_path / "tokens", clock=lambda: 0.0)
    expected = [1e-3 * rate(min(1, (step + 1) / STEPS)) for step in range(1, STEPS + 1)]
    assert seen == pytest.approx(expected, abs=1e-9)
    seen.clear()
    ticks = itertools.count()
    _train(bench, tmp_path / "time", clock=lambda: float(next(ticks)), limit_s=20.0)
    assert len(seen) < STEPS
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 0.2e-3


def test_a_checkpoint_is_written_at_least_so_often(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside those of the evaluations, as time goes by."""
    saved: list[int] = []
    on_save = Watch.on_save

    def noting(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        saved.append(state.global_step)
        on_save(self, args, state, control, **more)

    monkeypatch.setattr(Watch, "on_save", noting)
    ticks = itertools.count()
    _train(bench, tmp_path / "often", clock=lambda: 50.0 * next(ticks), limit_s=1e6)
    often, saved[:] = list(saved), []
    _train(bench, tmp_path / "seldom", clock=lambda: 0.0)
    assert saved == [4, 8, 12]
    assert set(saved) < set(often)


def test_only_whole_checkpoints_are_gone_on_with(tmp_path: Path) -> None:
    """One that was changed after it was marked, or never marked, goes."""
    for steps in (1, 2, 3):
        folder = tmp_path / f"checkpoint-{steps}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"1234")
        if steps < 3:
            write_mark(folder, Mark(steps=steps, seconds=steps, is_last=False))
    found = find_last(tmp_path)
    assert found is not None
    assert found[1].steps == 2
    assert not (tmp_path / "checkpoint-3").exists()
    (tmp_path / "checkpoint-2" / "weights").write_bytes(b"1235")
    found = find_last(tmp_path)
    assert found is not None
    assert found[1].steps == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoints.find_last(tmp_path / "checkpoint-1") is None


def test_as_many_rows_at_once_as_fit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A divisor of the batch, and never none."""
    module = load_module(bench.original.folder)
    row = 4 * 64 * 256
    for fits, rows in [(0, 1), (3, 3), (5, 4), (12, 12), (100, 12)]:
        monkeypatch.setattr("optimizers.distillation.training._LOGIT_BYTES", fits * row)
        assert rows_at_once(module, 12, 64) == rows


def test_a_build_that_is_killed_in_a_training_goes_on_and_cleans_up(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints lie in the store while there is no result, and the result tells what happened."""
    chain = [PRUNE, {"distill": {"method": "recover", **FIELDS}}]
    given: dict[str, Any] = {
        "model": str(bench.original.folder),
        "store": str(bench.layout.root),
        "calibration": Texts(text=bench.text),
        "evaluation": Texts(text=bench.evaluation),
    }
    planned = plan(PlanRequest(variants={"v": chain}, **given)).variants["v"]
    request = BuildRequest(variant="v", chain=planned.chain, recipe=planned.recipe, **given)

    def build(out: Path) -> str:
        with out.open("wb") as file:
            return Build(request, Events(file)).run()

    def die(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        on_save(self, args, state, control, **more)
        raise _PlantedError

    on_save = Watch.on_save
    with monkeypatch.context() as planted:
        planted.setattr(Watch, "on_save", die)
        with pytest.raises(_PlantedError):
            build(tmp_path / "first")
    (left,) = bench.layout.training.iterdir()
    assert find_last(left) is not None
    counted = _count_losses(monkeypatch)
    artifact = build(tmp_path / "second")
    assert counted[0] == 4
    assert not any(bench.layout.training.iterdir())
    record = Store(bench.layout.root).manifest(artifact).lineage[1]
    assert (record.stage, record.method) == ("distill", "recover")
    assert record.zeros
    assert "held-out text" in record.notes[0]
    told = [json.loads(line) for line in (tmp_path / "second").read_text().splitlines()]
    assert any("held-out KL" in str(event.get("message")) for event in told)
