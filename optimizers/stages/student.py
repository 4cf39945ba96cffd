"""``distill: {method: student}``: a smaller model out of the original's own layers, then trained.

Sanh et al., "DistilBERT, a distilled version of BERT", 2019 (https://arxiv.org/abs/1910.01108): the
student has layers of the teacher at even distances, its embeddings, norms and head. Owns which
layers are copied. Knows nothing of how training is done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizers.distillation.distilling import Distilling
from optimizers.errors import StageError
from optimizers.stage import Outcome, Report, Work


class Student(Distilling):
    """Make a smaller model and train it on the original's predictions."""

    version: ClassVar[int] = 1
    rank: ClassVar[int] = 3
    reason: ClassVar[str] = "a student is made of whole layers of an unchanged model"
    group: ClassVar[str | None] = "student"

    method: Annotated[
        Literal["student"],
        Field(description="student: copy some of the layers, then train the copy."),
    ]
    layers: Annotated[
        Annotated[int, Field(ge=2)] | tuple[Annotated[int, Field(ge=0)], ...],
        Field(
            description="How many layers to copy, the first, the last and evenly between them; or "
            "which ones, counted from 0."
        ),
    ]

    def problem(self) -> tuple[str, str, str] | None:
        """A list names layers in their order."""
        if isinstance(self.layers, int):
            return None
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            return (
                "layers",
                "The list is empty, or its layers are not in order, each once.",
                "Give a number of layers from 2 on, or a list such as [0, 2, 5].",
            )
        return None

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Copy the layers, and train."""
        from optimizers.blocks import decoder_blocks, drop_blocks
        from optimizers.torch_models import load_module

        copied: list[int] = []
        count = 0

        def make() -> Any:
            nonlocal copied, count
            module = load_module(work.folder)
            count = len(decoder_blocks(module))
            copied = self._copied(count)
            drop_blocks(module, set(range(count)) - set(copied))
            return module

        outcome = self.distil(make, work, target, report)
        note = f"made of layers {', '.join(map(str, copied))} of {count}"
        return Outcome(outcome.parameters, outcome.zeros, (note, *outcome.notes))

    def _copied(self, count: int) -> list[int]:
        wanted = self.layers if isinstance(self.layers, int) else len(self.layers)
        unknown = [] if isinstance(self.layers, int) else [i for i in self.layers if i >= count]
        if wanted >= count or unknown:
            what = f"there is no layer {unknown[0]}" if unknown else "a student has fewer"
            raise StageError(
                f"The model has {count} layers, numbered from 0: {what}.",
                path="layers",
                remedy=f"Copy at most {count - 1} layers.",
            )
        return evenly(count, wanted) if isinstance(self.layers, int) else list(self.layers)


def evenly(count: int, wanted: int) -> list[int]:
    """The first, the last, and what lies evenly between them, of ``count`` layers."""
    return [round(index * (count - 1) / (wanted - 1)) for index in range(wanted)]
