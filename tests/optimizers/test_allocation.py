"""How much each layer loses when layers are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from optimizers.allocation import layer_amounts
from optimizers.flow import Visited
from optimizers.linear_layers import block_layers
from optimizers.torch_models import load_module
from tests.optimizers.conftest import windows


@pytest.mark.parametrize("amount", [0.001, 0.3, 0.9])
def test_amounts_come_to_the_whole_and_follow_the_losses(
    tiny_llama_folder: Path, amount: float
) -> None:
    """Against sorting all losses at once, each in parts of its layer's mean.

    A layer whose weights are all missed alike loses the least, or everything.
    """
    module = load_module(tiny_llama_folder)
    before = {name: layer.weight.detach().clone() for name, layer in block_layers(module)}
    even = "model.layers.1.self_attn.v_proj"

    def losses(layer: Visited) -> torch.Tensor:
        squares = layer.weight.square()
        return squares + 100.0 if layer.name == even else squares

    amounts = layer_amounts(module, windows(), losses, amount)
    found = {}
    for name, weight in before.items():
        lost = weight.double().numpy() ** 2 + (100.0 if name == even else 0.0)
        found[name] = lost / lost.mean()
    together = np.sort(np.concatenate([values.ravel() for values in found.values()]))
    threshold = together[max(round(amount * together.size), 1) - 1] * (1 + 1e-6)
    for name, values in found.items():
        assert amounts[name] == pytest.approx(float((values <= threshold).mean()), abs=2e-3)
    whole = sum(amounts[name] * values.size for name, values in found.items())
    assert whole == pytest.approx(round(amount * together.size), abs=1)
    assert amounts[even] == (1.0 if amount > 0.8 else 0.0)
    for name, layer in block_layers(module):
        assert torch.equal(layer.weight, before[name]), "the module has changed"
