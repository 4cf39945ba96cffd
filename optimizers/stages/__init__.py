"""The table of stages: one line each, imported only when a chain names it.

To add a stage, write one file beside this one and add its line.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from optimizers.stage import Stage


@dataclass(frozen=True, slots=True)
class Entry:
    """One stage: its name in a chain, the method (or key) that selects it, its module and class.

    ``default`` marks the method that is meant where a chain names none of several.
    """

    name: str
    method: str
    target: str
    default: bool = False

    def load(self) -> type[Stage]:
        """Import the stage's class."""
        module, _, name = self.target.partition(":")
        loaded: type[Stage] = getattr(import_module(f"{__name__}.{module}"), name)
        return loaded


TABLE = (
    Entry("distill", "substitute", "substitute:Substitute"),
    Entry("distill", "student", "student:Student"),
    Entry("distill", "recover", "recover:Recover"),
    Entry("restructure", "depth", "depth:RestructureDepth"),
    Entry("restructure", "width", "width:RestructureWidth"),
    Entry("prune", "magnitude", "magnitude:PruneMagnitude", default=True),
    Entry("prune", "wanda", "wanda:PruneWanda"),
    Entry("prune", "sparsegpt", "sparsegpt:PruneSparseGpt"),
    Entry("smooth", "awq", "awq:SmoothAwq", default=True),
    Entry("smooth", "smoothquant", "smoothquant:SmoothQuant"),
    Entry("quantize", "weight_only", "weight_only:QuantizeWeightOnly"),
    Entry("quantize", "dynamic", "dynamic:QuantizeDynamic"),
    Entry("quantize", "static", "static:QuantizeStatic"),
    Entry("quantize", "kv_cache", "kv_cache:QuantizeKvCache"),
)
