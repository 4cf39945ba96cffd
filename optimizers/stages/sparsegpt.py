"""``prune: {method: sparsegpt}``: zero weights and let the others make up for it.

Owns the call of ``optimizers.obs`` for every layer, on the calibration text as it arrives there
through the layers pruned before. Knows nothing of how the text flows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizers import obs
from optimizers.flow import Visited
from optimizers.pruning import CalibratedPruning
from optimizers.stage import Outcome, Report, Work


class PruneSparseGpt(CalibratedPruning):
    """Zero a share of the weights and correct the rest by least squares."""

    version: ClassVar[int] = 1

    method: Annotated[
        Literal["sparsegpt"],
        Field(
            description="sparsegpt: weights whose loss the others can best make up for go first, "
            "and the others are corrected."
        ),
    ]

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Zero and correct layer by layer; embeddings, norms and lm_head are left alone."""
        return self.prune(work, target, report, losses=_losses, thin=self._thin)

    def _thin(self, layer: Visited, amount: float) -> None:
        obs.prune(layer.weight, obs.hessian(layer.inputs), amount=amount, pattern=self.pattern)


def _losses(layer: Visited) -> Any:
    return obs.losses(layer.weight, obs.hessian(layer.inputs))
