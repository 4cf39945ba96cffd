"""What a stage is: a frozen value whose fields are its config, and an ``apply`` that does the work.

Owns the base class and what goes in and out of ``apply``. Fields carry bounds and a description
each (a test walks them). Knows nothing of any one stage, of the store or of measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from artifacts.errors import BugError
from artifacts.manifest import Frozen, GraphSpec, NodePlan
from optimizers.sources import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimizers.distillation.texts import TrainingText

FLOAT_BYTES = 4  # of a weight in float32, the form that stages work in

Report = Callable[[float, str], None]
"""Hears how far a stage is, 0..1, and what it is doing."""


@dataclass(frozen=True, slots=True)
class Training:
    """What a stage that ``trains`` works with, beside the model.

    Attributes:
        folder: For checkpoints: it outlives a build that is killed, so that the next one goes on,
            and is gone once the result is kept.
        text: Gives the text to train on.
    """

    folder: Path
    text: TrainingText


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage works on.

    Attributes:
        folder: What the stage before left: a Hugging Face folder (torch form), or a folder with
            ``model.onnx`` and the files of its weights (ONNX form). Read-only.
        graph: How the ONNX model is run; None in the torch form.
        original: The model that the chain began with.
        fetch: Brings another model to this disk.
        calibration: Gives the text to calibrate on, as documents of equally many token ids; made
            when first asked for, which only a stage that ``calibrates`` may do.
        threads: Of the sessions that a stage opens; None for as many as there are cores.
        training: None for a stage that does not train.
    """

    folder: Path
    graph: GraphSpec | None
    original: Source
    fetch: Callable[[str, str | None, Report], Source]
    calibration: Callable[[Report], Sequence[NDArray[np.int64]]]
    threads: int | None = None
    training: Training | None = None

    def graph_spec(self) -> GraphSpec:
        """How the ONNX model is run, for stages of that form."""
        if self.graph is None:
            raise BugError("The torch form has no graph.")
        return self.graph


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage says about its result.

    ``source`` is set instead of files in the target folder by a stage that only changes which
    model the chain continues with; ``graph`` by a stage after which the graph is run otherwise;
    ``plan`` by one that decided on each product by measures.
    """

    parameters: int | None = None
    zeros: int | None = None
    notes: tuple[str, ...] = ()
    source: Source | None = None
    graph: GraphSpec | None = None
    plan: tuple[NodePlan, ...] = ()


class Stage(Frozen):
    """Base of all stages; a subclass is one file."""

    name: ClassVar[str]
    """The key in a chain, for example ``quantize``."""
    version: ClassVar[int]
    """Raised whenever the same fields would give another result."""
    form: ClassVar[Literal["torch", "onnx"]]
    """What it works on and leaves; the torch form comes before the ONNX form in every chain."""
    rank: ClassVar[int]
    """Its place among the stages of its form: none of a lower rank may follow it."""
    reach: ClassVar[int | None] = None
    """The highest rank that it may follow, where that is above its own."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of stages of which one must come before it; empty where none need."""
    reason: ClassVar[str]
    """Why it may not follow a stage of a higher rank or of the ONNX form, for the error message."""
    group: ClassVar[str | None] = None
    """A chain holds at most one stage of a group; None where it may hold several of this stage."""
    trains: ClassVar[bool] = False
    """Whether it is given a ``Training``."""
    mended_by: ClassVar[tuple[str, str] | None] = None
    """Name and label of a stage that should follow, since this one costs much without it."""
    keeps_result: ClassVar[bool] = True
    """False when there are no files to keep, since the result is another source."""

    @property
    def calibrates(self) -> bool:
        """Whether its result depends on the calibration text."""
        return False

    @property
    def streams(self) -> bool:
        """Whether it needs no more of a graph than its weights, one at a time (``stream``)."""
        return False

    def label(self) -> str:
        """The method, as the lineage tells it."""
        return str(getattr(self, "method", ""))

    def identity(self) -> dict[str, Any]:
        """What of this stage goes into the recipe: normally all its fields."""
        return self.model_dump(mode="json")

    def pinned(self, pin: Callable[[str, str | None], str]) -> Self:
        """This stage with the models that it names fixed to a revision; ``pin`` finds those.

        Raises:
            SourceError: A model cannot be found, or is refused.
        """
        del pin
        return self

    def as_item(self) -> dict[str, dict[str, Any]]:
        """This stage as an item of a normalised chain, defaults written out."""
        return {self.name: self.model_dump(mode="json")}

    def described(self) -> dict[str, dict[str, Any]]:
        """This stage as the manifest tells it: without paths of this machine."""
        return self.as_item()

    def problem(self) -> tuple[str, str, str] | None:
        """Check fields against each other: (field, message, remedy) when they do not agree."""
        return None

    def memory(self, parameters: int) -> int:
        """Bytes that ``apply`` holds at its peak, beside the process itself.

        Asked before anything is loaded. Here a float32 copy of all weights, and a second one for
        what is made or written; a stage that holds more says so.

        Args:
            parameters: Of the model that the chain begins with.
        """
        return 2 * FLOAT_BYTES * parameters

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Write the result into the empty folder ``target``; heavy imports belong in here.

        Raises:
            StageError: The stage cannot run on this model.
        """
        raise NotImplementedError

    def stream(self, model: Any, work: Work, target: Path, report: Report) -> Outcome:
        """What ``apply`` does, of a graph that lies nowhere; only of a stage that ``streams``.

        Args:
            model: An ``onnx_ir.Model`` whose weights are read when they are asked for.
            work: Its folder is empty.
            target: As in ``apply``.
            report: As in ``apply``.

        Raises:
            StageError: The stage cannot run on this model.
        """
        raise NotImplementedError
