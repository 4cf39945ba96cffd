"""``restructure: {method: depth}``: leave out whole layers of the decoder.

A smaller dense model comes out, faster in proportion. Owns the choice of layers: by list, the last
ones, those that turn least what flows through them (ShortGPT's block influence), or, one after
another, the one whose absence changes the model's predictions least (KL, found anew after each).
Knows nothing of healing, which should follow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizers.errors import StageError
from optimizers.restructuring import Restructuring
from optimizers.stage import Outcome, Report, Work

_SCORING_DOCUMENTS = 16  # for kl, which reads them once per layer and removal


class RestructureDepth(Restructuring):
    """Leave out layers."""

    version: ClassVar[int] = 1

    method: Annotated[
        Literal["depth"], Field(description="depth: whole layers of the decoder are left out.")
    ]
    drop: Annotated[
        int | tuple[Annotated[int, Field(ge=0)], ...],
        Field(description="How many layers to leave out, or which ones, counted from 0."),
    ]
    score: Annotated[
        Literal["block_influence", "kl", "last"],
        Field(
            description="Which layers go when drop is a number. block_influence: those that change "
            "least what flows through them; kl: one after another, the one whose absence changes "
            "the predictions least; last: the last ones before the final layer."
        ),
    ] = "block_influence"

    @property
    def calibrates(self) -> bool:
        """Only where layers are chosen by what flows through them."""
        return isinstance(self.drop, int) and self.score != "last"

    def problem(self) -> tuple[str, str, str] | None:
        """Something must go, and no layer twice."""
        remedy = "Give a number of layers from 1 on, or a list of different layers."
        if isinstance(self.drop, int):
            return ("drop", "No layer would be left out.", remedy) if self.drop < 1 else None
        if not self.drop or len(set(self.drop)) < len(self.drop):
            return "drop", "The list is empty or names a layer twice.", remedy
        return None

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Write the model without the layers."""
        from optimizers.blocks import decoder_blocks, drop_blocks
        from optimizers.torch_models import load_module, save_module

        module = load_module(work.folder)
        count = len(decoder_blocks(module))
        self._check(count)
        dropped = self._chosen(module, work, report)
        drop_blocks(module, dropped)
        report(0.9, "writing")
        save_module(module.to(module.config.dtype), work.folder, target)
        told = ", ".join(map(str, sorted(dropped)))
        return Outcome(
            parameters=int(module.num_parameters()),
            notes=(f"left out layers {told} of {count}",),
        )

    def _check(self, count: int) -> None:
        few = isinstance(self.drop, int) and self.drop >= count
        unknown = [] if isinstance(self.drop, int) else [i for i in self.drop if i >= count]
        if few or unknown or (not isinstance(self.drop, int) and len(self.drop) >= count):
            what = f"there is no layer {unknown[0]}" if unknown else "none would be left"
            raise StageError(
                f"The model has {count} layers, numbered from 0: {what}.",
                path="drop",
                remedy=f"Leave out at most {count - 1} layers.",
            )

    def _chosen(self, module: Any, work: Work, report: Report) -> set[int]:
        from optimizers.blocks import block_influences, decoder_blocks
        from optimizers.layer_trials import Trials

        if not isinstance(self.drop, int):
            return set(self.drop)
        count = len(decoder_blocks(module))
        if self.score == "last":
            # The very last layer prepares the head's input, and is missed more than its neighbours.
            return set(range(count - 1 - self.drop, count - 1))
        documents = work.calibration(report)
        if self.score == "block_influence":
            report(0.3, "scoring layers")
            influences = block_influences(module, documents)
            return set(sorted(range(count), key=influences.__getitem__)[: self.drop])
        trials = Trials(module, documents[:_SCORING_DOCUMENTS])
        dropped: set[int] = set()
        for number in range(self.drop):
            report(0.3 + 0.6 * number / self.drop, "trying layers")
            left = [index for index in range(count) if index not in dropped]
            dropped.add(min(left, key=lambda index: trials.divergence(dropped | {index})))
        return dropped
