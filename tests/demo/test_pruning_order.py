"""The ways of pruning on the demo model, by what they lose on its held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import demo
from artifacts import texts
from artifacts.layout import Layout
from artifacts.measure import measure
from artifacts.reference import choose_windows, load_reference, make_reference
from optimizers.calibration import Calibration, text_of
from optimizers.sources import DEMO, fetch
from optimizers.spec import parse_chain
from optimizers.stage import Work
from optimizers.tokenizer_files import load_tokenizer
from optimizers.torch_models import TorchScorer, load_module

pytestmark = pytest.mark.slow

TOKENS = 4096  # that are measured on
EVERY = 8  # of the calibration text's windows one is read: the order stays the same


@pytest.fixture(scope="module")
def perplexity(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Prune the demo model in one way; gives the perplexity of what is left."""
    scratch = tmp_path_factory.mktemp("pruned")
    source = fetch(DEMO, None, layout=Layout(scratch), offline=True, report=lambda *_: None)
    heldout = str(demo.path().parent / "heldout.jsonl")
    module = load_module(source.folder)
    vocabulary = int(module.get_output_embeddings().weight.shape[0])
    tokenizer = load_tokenizer(source.folder)
    documents = choose_windows(
        [tokenizer.encode(text).ids for text in texts.read(heldout)],
        window=256,
        tokens=TOKENS,
        vocabulary=vocabulary,
    )
    make_reference(scratch, documents, TorchScorer(module), vocabulary=vocabulary)
    reference = load_reference(scratch)
    calibration = Calibration(source, text_of(DEMO, None), heldout)
    found: dict[tuple[str, str], float] = {}

    def prune(method: str, pattern: str) -> float:
        if (method, pattern) not in found:
            chain = [{"prune": {"method": method, "pattern": pattern, "amount": 0.5}}]
            (stage,) = parse_chain("chain", chain).stages
            target: Path = scratch / f"{method}-{pattern.replace(':', '-')}"
            target.mkdir()
            work = Work(
                source.folder,
                None,
                source,
                _nobody,
                lambda report: calibration.windows(report)[::EVERY],
            )
            stage.apply(work, target, lambda *_: None)
            quality = measure(reference, TorchScorer(load_module(target)), is_user_text=True)
            assert quality.perplexity is not None
            assert np.isfinite(quality.perplexity)
            found[method, pattern] = quality.perplexity
        return found[method, pattern]

    return prune


def _nobody(*_: object) -> Any:
    pytest.fail("pruning needs no other model")


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("other", ["magnitude", "wanda"])
def test_making_up_for_what_goes_loses_least(perplexity: Any, pattern: str, other: str) -> None:
    """At a half, SparseGPT loses less than both ways that leave the other weights as they are.

    Wanda is not ahead of magnitude here, as it is on large models: the norms of a layer's inputs
    lie within a factor of two of each other (seven in down_proj), so they tell little.
    """
    assert perplexity("sparsegpt", pattern) < perplexity(other, pattern)


def test_a_pattern_costs_more_than_free_choice(perplexity: Any) -> None:
    """The twin that must not hold the other way round."""
    assert perplexity("magnitude", "unstructured") < perplexity("magnitude", "2:4")
