"""What restructuring leaves out of the demo model, against leaving out as much by chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import demo
from artifacts import texts
from optimizers.blocks import block_influences
from optimizers.dimensions import Space, find_axes, read_widths
from optimizers.layer_trials import Trials
from optimizers.narrowing import narrow, narrowed_config
from optimizers.tokenizer_files import load_tokenizer
from optimizers.torch_models import load_module
from optimizers.unit_scores import activations

WINDOW, DOCUMENTS = 128, 8
DRAWS = 8
LAYERS, DROPPED = 6, 2
FFN = 640


def _windows(name: str) -> list[np.ndarray]:
    tokenizer = load_tokenizer(demo.path())
    found = texts.read(str(demo.path().parent / name))
    documents = [np.array(tokenizer.encode(text).ids[:WINDOW]) for text in found]
    return [one for one in documents if one.size == WINDOW][:DOCUMENTS]


@pytest.fixture(scope="module")
def calibration() -> list[np.ndarray]:
    return _windows("calibration.jsonl")


@pytest.fixture(scope="module")
def heldout() -> list[np.ndarray]:
    return _windows("heldout.jsonl")


def test_layers_of_least_influence_are_missed_less_than_others(
    calibration: list[np.ndarray], heldout: list[np.ndarray]
) -> None:
    """KL on held-out text is below that of every draw of as many layers, which differ widely."""
    module = load_module(demo.path())
    influences = block_influences(module, calibration)
    order = sorted(range(LAYERS), key=influences.__getitem__)
    trials = Trials(module, heldout)
    chosen = trials.divergence(order[:DROPPED])
    random = np.random.default_rng(11)
    draws: list[set[int]] = []
    while len(draws) < DRAWS:
        draw = set(random.choice(LAYERS, DROPPED, replace=False).tolist())
        if draw != set(order[:DROPPED]) and draw not in draws:
            draws.append(draw)
    by_chance = [trials.divergence(draw) for draw in draws]
    assert chosen < min(by_chance)
    assert max(by_chance) > 2 * min(by_chance)


def test_channels_that_contribute_are_missed_more_than_others(
    calibration: list[np.ndarray], heldout: list[np.ndarray]
) -> None:
    """Keeping three of four feed-forward channels: by contribution, activity, chance, inversely."""
    whole = load_module(demo.path())
    axes = find_axes(whole, read_widths(whole))
    scores = {
        weighted: activations(whole, axes, calibration, weighted=weighted)
        for weighted in (True, False)
    }
    original = _log_probs(whole, heldout)

    def divergence(choose: Callable[[Any], Any], *, weighted: bool = True) -> float:
        module = load_module(demo.path())
        widths = read_widths(module)
        kept = {
            space: choose(values)[: FFN * 3 // 4].sort().values
            for space, values in scores[weighted].items()
            if space.kind == "ffn"
        }
        assert set(kept) == {Space("ffn", layer) for layer in range(LAYERS)}
        config = narrowed_config(module.config, replace(widths, ffn=FFN * 3 // 4))
        narrow(module, find_axes(module, widths), kept, config)
        without = _log_probs(module, heldout)
        return float((original.exp() * (original - without)).sum(dim=-1).mean())

    def highest(values: Any) -> Any:
        return values.argsort(descending=True)

    generator = torch.Generator().manual_seed(11)
    by_contribution, by_activity = divergence(highest), divergence(highest, weighted=False)
    by_chance = [
        divergence(lambda values: torch.randperm(len(values), generator=generator))
        for _ in range(3)
    ]
    assert by_contribution < by_activity < min(by_chance)
    assert max(by_chance) < divergence(lambda values: values.argsort())


def _log_probs(module: Any, documents: list[np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        logits = module(input_ids=torch.from_numpy(np.stack(documents)), use_cache=False).logits
        return torch.log_softmax(logits, dim=-1)
