"""Recovery on the demo model, by what it brings back on the demo's held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import demo
from artifacts import texts
from artifacts.layout import Layout
from artifacts.measure import measure
from artifacts.reference import Reference, choose_windows, load_reference, make_reference
from optimizers.calibration import Calibration, text_of
from optimizers.distillation.texts import TrainingText
from optimizers.results import Results
from optimizers.sources import DEMO, Source, fetch
from optimizers.spec import parse_chain
from optimizers.stage import Training, Work
from optimizers.tokenizer_files import load_tokenizer
from optimizers.torch_models import TorchScorer, load_module

HELD_OUT = str(demo.path().parent / "heldout.jsonl")
TOKENS = 8192


def _reference(source: Source, folder: Path) -> Reference:
    module = load_module(source.folder)
    vocabulary = int(module.get_output_embeddings().weight.shape[0])
    tokenizer = load_tokenizer(source.folder)
    documents = [tokenizer.encode(text).ids for text in texts.read(HELD_OUT)]
    chosen = choose_windows(documents, window=256, tokens=TOKENS, vocabulary=vocabulary)
    make_reference(folder, chosen, TorchScorer(module), vocabulary=vocabulary)
    return load_reference(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_recovery_halves_what_leaving_out_layers_cost(tmp_path: Path) -> None:
    """Two of six layers, found again by reading the calibration text a few times."""
    layout = Layout(tmp_path / "store")
    layout.create()
    source = fetch(DEMO, None, layout=layout, offline=True, report=lambda *_: None)
    (tmp_path / "reference").mkdir()
    reference = _reference(source, tmp_path / "reference")
    results = Results(layout)
    calibration = Calibration(source, text_of(DEMO, None), HELD_OUT)
    chain: list[dict[str, Any]] = [
        {"restructure": {"method": "depth", "drop": 2, "score": "last"}},
        {"distill": {"method": "recover", "tokens": 160_000, "minutes": 30}},
    ]
    folder, found = source.folder, []
    for number, stage in enumerate(parse_chain("chain", chain).stages):
        target = tmp_path / str(number)
        target.mkdir()
        training = Training(
            results.lasting(str(number)), TrainingText(source, calibration, results)
        )
        work = Work(folder, None, source, _nobody, calibration.windows, training=training)
        stage.apply(work, target, lambda *_: None)
        quality = measure(reference, TorchScorer(load_module(target)), is_user_text=True)
        found.append(quality.kl_mean)
        folder = target
    assert found[1] < found[0] / 2


def _nobody(*_: object) -> Any:
    pytest.fail("recovery needs no other model")
