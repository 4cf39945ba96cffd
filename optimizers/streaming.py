"""Builds that go from a model's weights to quantized ones without a float32 graph in between.

Owns which chains can be built so, and the two steps of such a build. Nothing is kept between them,
and nothing of them can be measured; the finished artifact can. Knows nothing of how a graph is
exported or quantized, or of publishing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.manifest import GraphSpec, StageRecord
from optimizers.results import folder_bytes
from optimizers.stage import Stage, Work
from optimizers.stage_record import blaming, record_of
from optimizers.steps import Steps

if TYPE_CHECKING:
    from optimizers.export.unwritten import Unwritten


class NotStreamedError(Exception):
    """The export must be written, to be verified as a whole; the message says why."""


def can_stream(stages: Sequence[Stage]) -> bool:
    """Whether a chain needs nothing of its export but the weights, one at a time."""
    return len(stages) == 1 and stages[0].streams


def export_step(work: Work, scratch: Path, steps: Steps) -> Unwritten:
    """Export the original, its weights left where they are.

    Args:
        work: As a stage of the ONNX form gets it, but for the graph and its folder.
        scratch: An empty folder.
        steps: Where the build is.

    Raises:
        NotStreamedError: There is no other way than to write it.
        ExportError: The model cannot be exported at all.
    """
    report, began = steps.begin(reused=False), time.monotonic()
    _import_libraries()
    from optimizers.export.unwritten import UnwrittenError, export_unwritten

    try:
        unwritten = export_unwritten(
            work.original.folder, scratch, progress=report, threads=work.threads
        )
    except UnwrittenError as error:
        raise NotStreamedError(str(error)) from error
    record = StageRecord(
        stage="export",
        method=unwritten.record.exporter,
        form="onnx",
        seconds=time.monotonic() - began,
        size_bytes=unwritten.float_bytes,
        notes=("streamed: its weights in float32 were never written", *unwritten.record.notes),
    )
    steps.measured(record, None)
    return unwritten


def quantize_step(
    unwritten: Unwritten, work: Work, stage: Stage, path: str, steps: Steps
) -> GraphSpec:
    """Apply the chain's only stage; its result lies in the work's folder.

    Gives how the result is run.

    Args:
        unwritten: The export.
        work: Its folder is empty.
        stage: It ``streams``.
        path: Of the stage in the config.
        steps: Where the build is.

    Raises:
        StageError: The stage cannot run on this model.
    """
    report, began = steps.begin(reused=False), time.monotonic()
    work = replace(work, graph=unwritten.graph)
    with blaming(stage, path):
        outcome = stage.stream(unwritten.model, work, work.folder, report)
    record = record_of(
        stage,
        outcome,
        seconds=time.monotonic() - began,
        size_bytes=folder_bytes(work.folder),
        zeros=None,
    )
    steps.measured(record, None)
    return outcome.graph or unwritten.graph


def _import_libraries() -> None:
    """Import what every export needs, with the collector kept from it.

    Going through what they leave, again and again, takes a sixth of their time and finds nothing.
    """
    gc.disable()
    try:
        import mobius  # noqa: F401
        import transformers.modeling_utils  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
