"""``prune: {method: wanda}``: zero the weights that matter least for what flows through them.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2023
(https://arxiv.org/abs/2306.11695): a weight's score is its magnitude times the norm of its input
over the calibration text, compared within each output; no weight that stays is changed. Owns the
score. Knows nothing of patterns and of how the text flows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizers.flow import Visited
from optimizers.masks import lowest_of_each_output, two_of_four
from optimizers.pruning import CalibratedPruning
from optimizers.stage import Outcome, Report, Work


class PruneWanda(CalibratedPruning):
    """Zero a share of the weights, the least needed first."""

    version: ClassVar[int] = 1

    method: Annotated[
        Literal["wanda"],
        Field(description="wanda: weights whose size times their input's norm is least go first."),
    ]

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Zero weights layer by layer; embeddings, norms and lm_head are left alone."""
        return self.prune(work, target, report, losses=_losses, thin=self._thin)

    def _thin(self, layer: Visited, amount: float) -> None:
        scores = score(layer.weight, layer.inputs)
        if self.pattern == "2:4":
            layer.weight.masked_fill_(two_of_four(scores), 0)
        else:
            layer.weight.masked_fill_(lowest_of_each_output(scores, amount), 0)


def _losses(layer: Visited) -> Any:
    """The squared error that a weight's absence makes, were inputs independent of each other."""
    return score(layer.weight, layer.inputs).square()


def score(weight: Any, inputs: Any) -> Any:
    """|w| times the l2 norm of the input over all tokens: (outputs, inputs)."""
    return weight.abs() * inputs.norm(dim=0)
