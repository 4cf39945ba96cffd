"""``distill: {method: recover}``: train what pruning or restructuring has left, by the original.

Owns its place in a chain: behind what did the damage, which may be done in several rounds. The
teacher is always the model that the chain began with. Knows nothing of how training is done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from optimizers.distillation.distilling import Distilling
from optimizers.pruning import Pruning
from optimizers.restructuring import Restructuring
from optimizers.stage import Outcome, Report, Work


class Recover(Distilling):
    """Bring predictions back to those of the original model, as far as possible."""

    version: ClassVar[int] = 1
    rank: ClassVar[int] = Restructuring.rank
    reach: ClassVar[int | None] = Pruning.rank
    needs: ClassVar[tuple[str, ...]] = ("restructure", "prune")
    reason: ClassVar[str] = "training would undo it"

    method: Annotated[
        Literal["recover"],
        Field(description="recover: train the model that is left to predict as the original does."),
    ]

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Train, and keep zeros zero."""
        from optimizers.torch_models import load_module

        return self.distil(lambda: load_module(work.folder), work, target, report)
