"""Mixed bits on the demo model: a choice that chance does not beat, at a size between 4 and 8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import demo
from artifacts import texts
from artifacts.manifest import GraphSpec
from artifacts.packed_session import PackedSession
from artifacts.reference import log_softmax
from artifacts.session import Row
from optimizers import mixed_bits
from optimizers.export import export
from optimizers.mixed_bits import Sensitivity
from optimizers.tokenizer_files import load_tokenizer
from tests.optimizers.onnx_stage import run_stage

WINDOW, FIRST, MEAN_BITS = 256, 16, 5.0


def _windows(name: str) -> list[np.ndarray]:
    tokenizer = load_tokenizer(demo.path())
    found = texts.read(str(demo.path().parent / name))
    documents = [np.array(tokenizer.encode(text).ids[:WINDOW]) for text in found]
    return [one for one in documents if one.size == WINDOW][:16]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphSpec]:
    """The demo model's graph."""
    done = export(demo.path(), tmp_path_factory.mktemp("demo-mixed"), progress=lambda *_: None)
    return done.model, done.graph


@pytest.mark.slow
def test_sensitivities_choose_better_than_chance(
    exported: tuple[Path, GraphSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of plans of one size: the measured one loses least, and its inverse most."""
    model, graph = exported
    calibration, heldout = _windows("calibration.jsonl"), _windows("heldout.jsonl")

    def log_probs(path: Path) -> np.ndarray:
        session = PackedSession(path, graph, slots=1, max_length=WINDOW, threads=2)
        rows = (session.step([Row(0, 0, one, WINDOW - FIRST)]).logits for one in heldout)
        return np.concatenate([log_softmax(logits) for logits in rows])

    original = log_probs(model)

    def quantized(name: str, **fields: Any) -> tuple[float, int]:
        target = tmp_path / name
        target.mkdir()
        run_stage({"method": "weight_only", **fields}, model, graph, target, calibration)
        other = log_probs(target / "model.onnx")
        kl = float((np.exp(original) * (original - other)).sum(axis=-1).mean())
        return kl, (target / "model.onnx.data").stat().st_size

    few, many = quantized("few", bits=4), quantized("many", bits=8)
    measured: list[Sensitivity] = []
    real = mixed_bits.measure

    def measure(*given: Any) -> list[Sensitivity]:
        measured[:] = measured or real(*given)
        return measured

    monkeypatch.setattr(mixed_bits, "measure", measure)
    mixed = quantized("mixed", bits="mixed", mean_bits=MEAN_BITS)
    assert few[1] < mixed[1] < many[1]
    assert many[0] < mixed[0] < 0.5 * few[0]

    def planned_by(name: str, losses: np.ndarray) -> float:
        told = [
            Sensitivity(one.weights, {4: float(loss), 8: 0.0})
            for one, loss in zip(measured, losses, strict=True)
        ]
        monkeypatch.setattr(mixed_bits, "measure", lambda *_: told)
        kl, size = quantized(name, bits="mixed", mean_bits=MEAN_BITS)
        assert size <= 1.02 * mixed[1]
        return kl

    real_losses = np.array([one.losses[4] for one in measured])
    by_chance = [
        planned_by(f"chance-{seed}", np.random.default_rng(seed).uniform(size=len(measured)))
        for seed in range(3)
    ]
    assert mixed[0] < 0.8 * min(by_chance)
    assert planned_by("inverted", 1.0 / real_losses) > max(by_chance)
