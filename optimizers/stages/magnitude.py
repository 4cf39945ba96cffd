"""``prune: {method: magnitude}``: set the smallest weights of the decoder's linear layers to zero.

Owns the choice of weights by absolute value, per layer or over all layers (Han et al., "Learning
both Weights and Connections for Efficient Neural Networks", 2015, https://arxiv.org/abs/1506.02626).
Needs no text. Knows nothing of later stages, which all keep exact zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizers.linear_layers import block_layers, is_transposed
from optimizers.masks import two_of_four
from optimizers.pruning import Pruning
from optimizers.stage import Outcome, Report, Work


class PruneMagnitude(Pruning):
    """Zero a share of the weights, the smallest first."""

    version: ClassVar[int] = 3

    method: Annotated[
        Literal["magnitude"], Field(description="magnitude: weights nearest to zero go first.")
    ] = "magnitude"

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Zero the weights and save the model; embeddings, norms and lm_head are left alone."""
        import torch

        from optimizers.torch_models import load_module, save_module

        module = load_module(work.folder, dtype="auto")
        self.check_widths(module)
        layers = block_layers(module)
        together = None
        if self.scope == "global":
            report(0.1, "finding the threshold")
            together = _Smallest([layer.weight for _, layer in layers], self.amount)
        zeros = 0
        with torch.no_grad():
            for index, (_, layer) in enumerate(layers):
                report(0.2 + 0.6 * index / len(layers), "pruning")
                layer.weight.masked_fill_(self._mask(layer, together), 0)
                zeros += int((layer.weight == 0).sum())
        report(0.8, "writing")
        save_module(module, work.folder, target)
        return Outcome(parameters=int(module.num_parameters()), zeros=zeros)

    def _mask(self, layer: Any, together: _Smallest | None) -> Any:
        """Where the layer's weight is to be zero, as it lies."""
        if self.pattern == "2:4":
            magnitudes = layer.weight.detach().abs().float()
            if is_transposed(layer):
                return two_of_four(magnitudes.T.contiguous()).T
            return two_of_four(magnitudes)
        return (together or _Smallest([layer.weight], self.amount)).mark(layer.weight)


class _Smallest:
    """Marks exactly ``round(amount * size)`` of some weights, the smallest; of equals, the first.

    Weights of 16 bits have many equals, so a threshold alone would take more than it should.
    """

    def __init__(self, weights: Sequence[Any], amount: float) -> None:
        import torch

        magnitudes = torch.cat([_magnitudes(weight) for weight in weights])
        count = round(amount * magnitudes.numel())
        self._threshold = 0.0  # below which there is nothing to mark
        self._equals = 0  # that are still to be marked
        if count:
            self._threshold = float(torch.kthvalue(magnitudes, count).values)
            self._equals = count - int((magnitudes < self._threshold).sum())

    def mark(self, weight: Any) -> Any:
        """Give the mask of one of the weights; each is to be marked once, in their order."""
        import torch

        magnitudes = _magnitudes(weight)
        mask = magnitudes < self._threshold
        equals = torch.nonzero(magnitudes == self._threshold).flatten()[: self._equals]
        mask[equals] = True
        self._equals -= len(equals)
        return mask.view(weight.shape)


def _magnitudes(weight: Any) -> Any:
    return weight.detach().abs().float().flatten()
