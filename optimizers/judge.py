"""``judge``: measure an artifact that is in the store, and give it the figures that it lacks.

Owns what is measured when a build put that off, or when another class of processor or another text
makes its figures worthless. Knows nothing of budgets, or of how the artifact was made.
"""

from __future__ import annotations

from pathlib import Path

from artifacts.locks import building
from artifacts.manifest import Quality
from artifacts.protocol import Judged, JudgeRequest, StageBegun
from artifacts.store import Store
from optimizers import sources
from optimizers.answer import answer
from optimizers.equipment import check_equipment
from optimizers.errors import RecipeChangedError
from optimizers.events import Events
from optimizers.publish import MODEL
from optimizers.quality import Judge
from optimizers.results import Results

_STEP = "measure"


def run(line: bytes, events: Events) -> int:
    """Read a request, measure, and end with exactly one final event; gives the exit status."""
    return answer(
        line, JudgeRequest, lambda request: Judged(quality=judge(request, events)), events
    )


def judge(request: JudgeRequest, events: Events) -> Quality:
    """Measure the artifact, or find what this machine's class measured before.

    Raises:
        OptimizerError: The original cannot be had, or is another than the artifact's.
        ArtifactError: The store, the artifact or the text cannot be used.
    """

    def report(fraction: float, message: str) -> None:
        events.progress(_STEP, fraction, message)

    check_equipment(f"Artifact {request.artifact[:12]} has no figures for this class of processor")
    store = Store(Path(request.store).expanduser())
    with building(store.layout):
        events.send(StageBegun(stage=_STEP, index=0, count=1))
        stored = store.open(request.artifact)
        original = sources.fetch(
            request.model,
            request.revision,
            layout=store.layout,
            offline=request.offline,
            report=report,
        )
        if original.model.revision != stored.manifest.model.revision:
            raise RecipeChangedError(
                f"{request.model} is no longer what artifact {request.artifact[:12]} was made of.",
                path="model",
                remedy="Start again, so that the change is planned.",
            )
        text = None if request.evaluation is None else request.evaluation.text
        judging = Judge(Results(store.layout), original, text, request.threads)
        model, graph = stored.path(MODEL), stored.manifest.graph
        quality = judging.onnx(request.artifact, model, graph, report)
        if stored.manifest.quality is None:
            store.complete(request.artifact, quality)
        return quality
