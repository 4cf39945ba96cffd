"""``prune: {method: magnitude}``: set the smallest weights of the decoder's linear layers to zero.

Owns the choice of weights (Han et al. 2015: by absolute value, per layer or over all layers) and
writes the result as safetensors. The zeros are unstructured: dense kernels take as long with them
as without, so what this shows is how much a model can lose. Knows nothing of later stages, which
all keep exact zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizers.errors import StageError
from optimizers.stage import Outcome, Report, Stage, Work

_LINEAR = {"Linear", "Conv1D"}  # torch.nn's, and GPT-2's transposed one


class PruneMagnitude(Stage):
    """Zero a share of the weights, the smallest first."""

    name: ClassVar[str] = "prune"
    version: ClassVar[int] = 1
    form: ClassVar[Literal["torch", "onnx"]] = "torch"

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
        weights = block_weights(module)
        threshold = None
        if self.scope == "global":
            report(0.1, "finding the threshold")
            threshold = _global_threshold([weight for _, weight in weights], self.amount)
        zeros = 0
        with torch.no_grad():
            for index, (_, weight) in enumerate(weights):
                report(0.2 + 0.6 * index / len(weights), "pruning")
                if threshold is None:
                    mask = _smallest(weight, self.amount)
                else:
                    mask = weight.abs().float() <= threshold
                weight.masked_fill_(mask, 0)
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


def _smallest(weight: Any, amount: float) -> Any:
    """Mark exactly ``round(amount * size)`` weights, the smallest; of equals, the first ones."""
    import torch

    magnitudes = weight.detach().abs().float().flatten()
    count = round(amount * magnitudes.numel())
    if count == 0:
        return torch.zeros_like(weight, dtype=torch.bool)
    threshold = torch.kthvalue(magnitudes, count).values
    mask = magnitudes < threshold
    equal = torch.nonzero(magnitudes == threshold).flatten()
    mask[equal[: count - int(mask.sum())]] = True
    return mask.view(weight.shape)


def _global_threshold(weights: list[Any], amount: float) -> float:
    """The magnitude that the share ``amount`` of all weights does not exceed."""
    import torch

    magnitudes = torch.cat([weight.detach().abs().float().flatten() for weight in weights])
    count = max(1, round(amount * magnitudes.numel()))
    return float(torch.kthvalue(magnitudes, count).values)
