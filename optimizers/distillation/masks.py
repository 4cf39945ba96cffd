"""The zeros that pruning made: found before training, and kept exactly zero through it.

Owns which weights those are and how many. Knows nothing of how a model is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimizers.errors import StageError
from optimizers.linear_layers import block_weights

_PRUNED = 1e-3  # share of zeros from which a matrix was pruned; fewer are accidents of rounding


def zero_masks(module: Any) -> dict[str, Any]:
    """Where the weights of the decoder's linear layers are exactly zero, by the weight's name.

    Weights that were not pruned have no entry, and so has a model of an architecture that cannot
    be.
    """
    try:
        weights = block_weights(module)
    except StageError:
        return {}
    found = {name: weight.detach() == 0 for name, weight in weights}
    return {name: mask for name, mask in found.items() if float(mask.double().mean()) >= _PRUNED}


def apply_masks(module: Any, masks: Mapping[str, Any]) -> None:
    """Set weights to zero again, in place."""
    import torch

    with torch.no_grad():
        for name, mask in masks.items():
            weight = module.get_parameter(name)
            weight.masked_fill_(mask.to(weight.device), 0)


def count_zeros(module: Any) -> int:
    """How many weights of the decoder's linear layers are exactly zero."""
    return sum(int((weight == 0).sum()) for _, weight in block_weights(module))
