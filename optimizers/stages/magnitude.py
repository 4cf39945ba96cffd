"""``prune: {method: magnitude}``: set the smallest weights of the decoder's linear layers to zero.

Owns the choice of weights (Han et al. 2015: by absolute value, per layer or over all layers) and
writes the result as safetensors. The zeros are unstructured: dense kernels take as long with them
as without, so what this shows is how much a model can lose. Knows nothing of later stages, which
all keep exact zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizers.errors import StageError
from optimizers.stage import Outcome, Report, Stage, Work

_LINEAR = {"Linear", "Conv1D"}  # torch.nn's, and GPT-2's transposed one


class PruneMagnitude(Stage):
    """Zero a share of the weights, the smallest first."""

    name: ClassVar[str] = "prune"
    version: ClassVar[int] = 2
    form: ClassVar[Literal["torch", "onnx"]] = "torch"
    rank: ClassVar[int] = 10
    reason: ClassVar[str] = "zeros are made in the torch form, which the export ends"

    method: Annotated[
        Literal["magnitude"], Field(description="magnitude: weights nearest to zero go first.")
    ] = "magnitude"
    amount: Annotated[
        float, Field(gt=0, lt=1, description="Share of the weights to zero, between 0 and 1.")
    ]
    scope: Annotated[
        Literal["layer", "global"],
        Field(
            description="layer: this share of every layer; global: of all layers together, so "
            "that layers with small weights lose more."
        ),
    ] = "layer"

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Zero the weights and save the model; embeddings, norms and lm_head are left alone."""
        import torch

        from optimizers.torch_models import load_module, save_module

        module = load_module(work.folder, dtype="auto")
        weights = [weight for _, weight in block_weights(module)]
        together = None
        if self.scope == "global":
            report(0.1, "finding the threshold")
            together = _Smallest(weights, self.amount)
        zeros = 0
        with torch.no_grad():
            for index, weight in enumerate(weights):
                report(0.2 + 0.6 * index / len(weights), "pruning")
                smallest = together or _Smallest([weight], self.amount)
                weight.masked_fill_(smallest.mark(weight), 0)
                zeros += int((weight == 0).sum())
        report(0.8, "writing")
        save_module(module, work.folder, target)
        return Outcome(parameters=int(module.num_parameters()), zeros=zeros)


def block_weights(module: Any) -> list[tuple[str, Any]]:
    """The weight matrices of all linear layers inside the decoder's blocks.

    Raises:
        StageError: The architecture keeps its weights in some other way.
    """
    heads = {id(module.get_output_embeddings()), id(module.get_input_embeddings())}
    found: list[tuple[str, Any]] = []
    seen: set[int] = set()
    others: list[str] = []
    for name, layer in module.named_modules():
        if id(layer) in heads:
            continue
        if type(layer).__name__ in _LINEAR:
            if id(layer.weight) not in seen:
                seen.add(id(layer.weight))
                found.append((f"{name}.weight", layer.weight))
            continue
        others += [
            f"{name}.{key}"
            for key, parameter in layer.named_parameters(recurse=False)
            if parameter.ndim >= 3
        ]
    if others:
        raise StageError(
            f"This architecture keeps {len(others)} weights outside linear layers "
            f"(for example {others[0]}), so they would silently stay as they are.",
            remedy="Leave prune out for this model.",
        )
    if not found:
        raise StageError(
            "This architecture has no linear layers.", remedy="Leave prune out for this model."
        )
    return found


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
