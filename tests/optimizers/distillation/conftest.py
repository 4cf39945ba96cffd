"""A store, a text, and stages that train, applied as a build does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.layout import Layout
from benchmarks import zoo
from optimizers.calibration import Calibration
from optimizers.distillation.texts import TrainingText
from optimizers.results import Results
from optimizers.sources import Source, fetch
from optimizers.spec import parse_chain
from optimizers.stage import Outcome, Training, Work

LAYERS = 4
LENGTH = 64  # what the models can take, and so the windows that they are trained on


def quiet(fraction: float, message: str) -> None:
    """Take progress and say nothing."""


@dataclass
class Bench:
    """One original model, and a place to work on it."""

    original: Source
    layout: Layout
    text: str
    evaluation: str
    told: list[tuple[float, str]] = field(default_factory=list)

    def apply(self, chain: list[dict[str, Any]], work: Path, target: Path) -> Outcome:
        """Apply the last stage of a chain to what those before it left."""
        parsed = parse_chain("chain", chain)
        assert not parsed.errors
        target.mkdir()
        results = Results(self.layout)
        calibration = Calibration(self.original, self.text, None)
        training = Training(
            results.lasting(target.name), TrainingText(self.original, calibration, results)
        )
        return parsed.stages[-1].apply(
            Work(work, None, self.original, _nobody, calibration.windows, training=training),
            target,
            lambda fraction, message: self.told.append((fraction, message)),
        )


def _nobody(*_: object) -> Any:
    pytest.fail("training needs no model but the original")


def make_bench(folder: Path, name: str) -> Bench:
    """Give a small random model of some layers, with a text of random words."""
    model = zoo.write_model(folder / name, name, **_deeper(name))
    layout = Layout(folder / "store")
    layout.create()
    source = fetch(str(model), None, layout=layout, offline=True, report=quiet)
    paths = [_write_text(folder / f"text{seed}.jsonl", seed) for seed in (7, 8)]
    return Bench(source, layout, *paths)


def _write_text(path: Path, seed: int) -> str:
    random = np.random.default_rng(seed)
    words = ["".join(chr(97 + c) for c in random.integers(0, 26, size)) for size in [3, 5, 7] * 20]
    documents = [" ".join(random.choice(words, 30)) for _ in range(24)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


def _deeper(name: str) -> dict[str, Any]:
    changes: dict[str, Any]
    if name == "gpt2":
        return {"n_layer": LAYERS, "n_positions": LENGTH}
    changes = {"num_hidden_layers": LAYERS, "max_position_embeddings": LENGTH}
    if kinds := getattr(zoo.make_config(name), "layer_types", None):
        changes["layer_types"] = (list(kinds) * LAYERS)[:LAYERS]
    return changes


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute with one thread: in models as small as these, others only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Give a Llama to work on."""
    return make_bench(tmp_path, "llama")
