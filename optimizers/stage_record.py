"""What is told of one stage at work: its record when it ends well, and the field that it fails on.

Knows nothing of what the stage does, or of what its result is kept as.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from artifacts.manifest import StageRecord
from optimizers.errors import OptimizerError
from optimizers.stage import Outcome, Stage


def record_of(
    stage: Stage, outcome: Outcome, *, seconds: float, size_bytes: int, zeros: int | None
) -> StageRecord:
    """The stage's line of the lineage."""
    return StageRecord(
        stage=stage.name,
        method=stage.label(),
        params=stage.described()[stage.name],
        form=stage.form,
        seconds=seconds,
        size_bytes=size_bytes,
        parameters=outcome.parameters,
        zeros=zeros,
        notes=outcome.notes,
        plan=outcome.plan,
    )


@contextmanager
def blaming(stage: Stage, path: str) -> Iterator[None]:
    """Let an error say where in the config the stage is.

    Args:
        stage: At work.
        path: Of the stage.
    """
    try:
        yield
    except OptimizerError as error:
        if not error.path:
            error.path = path
        elif error.path.split(".")[0] in type(stage).model_fields:
            error.path = f"{path}.{error.path}"
        raise  # else the fault is another field's, of the model for example
