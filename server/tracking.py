"""Turns what the optimizer's child says into a variant's progress and the log.

Knows nothing of what is built, or of what follows when it is done.
"""

from __future__ import annotations

import structlog

from artifacts.protocol import (
    BuildEvent,
    BuildFailed,
    Built,
    Judged,
    Progress,
    StageBegun,
    StageMeasured,
)
from server.catalog import BuildProgress
from server.variants import Variants

_log = structlog.get_logger(__name__)


class ProgressTracker:
    """Observes one build, or the measuring of one artifact."""

    def __init__(self, variants: Variants, name: str) -> None:
        self._variants = variants
        self._name = name
        self._progress = BuildProgress()

    def observe(self, event: BuildEvent) -> None:
        """Hear an event."""
        match event:
            case StageBegun():
                _log.info(
                    "stage",
                    variant=self._name,
                    stage=event.stage,
                    number=f"{event.index + 1}/{event.count}",
                    reused=event.reused or None,
                )
                self._progress = BuildProgress(
                    stage=event.stage, stage_index=event.index, stage_count=event.count
                )
            case Progress():
                self._progress = BuildProgress(
                    stage=event.stage,
                    stage_index=self._progress.stage_index,
                    stage_count=self._progress.stage_count,
                    fraction=event.fraction,
                    message=event.message,
                )
            case StageMeasured():
                quality = event.record.quality
                _log.info(
                    "stage measured",
                    variant=self._name,
                    stage=event.record.stage,
                    seconds=round(event.record.seconds, 2),
                    megabytes=round(event.record.size_bytes / 1e6, 2),
                    kl_mean=None if quality is None else round(quality.kl_mean, 5),
                )
                return
            case Built() | Judged() | BuildFailed():
                return
        self._variants.progressed(self._name, self._progress)
