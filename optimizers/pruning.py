"""What all ways of pruning share: their fields, their place in a chain, and how they are run.

Owns the amount, the scope and the pattern of zeros and their agreement. Knows nothing of how
weights are chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from optimizers.allocation import layer_amounts
from optimizers.errors import StageError
from optimizers.flow import Visited, visit_layers
from optimizers.linear_layers import block_layers, block_weights, is_transposed
from optimizers.masks import GROUP, Pattern
from optimizers.stage import FLOAT_BYTES, Outcome, Report, Stage, Work


class Pruning(Stage):
    """Sets weights of the decoder's linear layers to zero."""

    name: ClassVar[str] = "prune"
    form: ClassVar[Literal["torch", "onnx"]] = "torch"
    rank: ClassVar[int] = 10
    reason: ClassVar[str] = (
        "zeros are chosen before scales are folded in, and the export ends the torch form"
    )

    amount: Annotated[
        float,
        Field(gt=0, lt=1, description="Share of the weights to zero, between 0 and 1."),
    ]
    pattern: Annotated[
        Pattern,
        Field(
            description="unstructured: zeros lie anywhere; 2:4: two of every four weights along a "
            "layer's inputs."
        ),
    ] = "unstructured"

    scope: Annotated[
        Literal["layer", "global"],
        Field(
            description="layer: this share of every layer; global: of all layers together, so "
            "that layers whose weights are missed less lose more."
        ),
    ] = "layer"

    @model_validator(mode="before")
    @classmethod
    def _amount_of_the_pattern(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("pattern") == "2:4":
            return {"amount": 0.5, **fields}
        return fields

    def problem(self) -> tuple[str, str, str] | None:
        """Two of four is a half, and leaves nothing to choose between layers."""
        if self.pattern == "2:4" and self.scope == "global":
            message = "Two of every four weights are chosen within each four, not globally."
            return "scope", message, "Leave scope out."
        if self.pattern == "2:4" and self.amount != 0.5:
            message = f"Two of every four weights are 0.5 of them, not {self.amount}."
            return "amount", message, "Leave amount out."
        return None

    def memory(self, parameters: int) -> int:
        """Globally, all weights' scores as well, one beside the other."""
        scores = 2 * FLOAT_BYTES * parameters if self.scope == "global" else 0
        return super().memory(parameters) + scores

    def check_widths(self, module: Any) -> None:
        """Refuse layers that the pattern does not fit.

        Raises:
            StageError: Their inputs cannot be divided by four.
        """
        if self.pattern != "2:4":
            return
        for name, layer in block_layers(module):
            inputs = layer.weight.shape[0 if is_transposed(layer) else 1]
            if inputs % GROUP:
                raise StageError(
                    f"Layer {name} has {inputs} inputs, which cannot be divided by {GROUP}.",
                    path="pattern",
                    remedy="Use pattern: unstructured.",
                )


class CalibratedPruning(Pruning):
    """Chooses by what flows through each layer when the model reads the calibration text."""

    @property
    def calibrates(self) -> bool:
        """Always: it looks at what the text makes flow."""
        return True

    def prune(
        self,
        work: Work,
        target: Path,
        report: Report,
        *,
        losses: Callable[[Visited], Any],
        thin: Callable[[Visited, float], None],
    ) -> Outcome:
        """Load, have every layer thinned when the text arrives there, and save.

        Args:
            work: What is pruned.
            target: Where the result goes.
            report: Hears of it.
            losses: What each weight of a layer is missed by, as ``layer_amounts`` wants it; asked
                for only when the share of each layer is to be found.
            thin: Zeroes a share of a layer's weights.
        """
        from optimizers.torch_models import load_module, save_module

        windows = work.calibration(report)
        module = load_module(work.folder)
        self.check_widths(module)
        amounts: dict[str, float] = {}
        if self.scope == "global":
            report(0.1, "comparing layers")
            amounts = layer_amounts(module, windows, losses, self.amount)
        total = len(block_layers(module))
        done = 0

        def counted(layer: Visited) -> None:
            nonlocal done
            thin(layer, amounts.get(layer.name, self.amount))
            done += 1
            report(0.2 + 0.6 * done / total, f"pruning {layer.name}")

        visit_layers(module, windows, counted)
        zeros = sum(int((weight == 0).sum()) for _, weight in block_weights(module))
        report(0.8, "writing")
        save_module(module.to(module.config.dtype), work.folder, target)
        notes = (
            (f"layers lost between {min(amounts.values()):.2f} and {max(amounts.values()):.2f}",)
            if amounts
            else ()
        )
        return Outcome(parameters=int(module.num_parameters()), zeros=zeros, notes=notes)
