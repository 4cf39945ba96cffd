"""What each stage of a chain added: quality lost and bytes, from the original to the artifact.

Owns the steps and how a stage is labelled. Knows nothing of how they are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.manifest import StageRecord
from server.budget import worst_stage


@dataclass(frozen=True, slots=True)
class Step:
    """One stage.

    Attributes:
        label: Its name and method.
        kl: What it added to the mean KL divergence, in nats; None where it was not measured.
        kl_after: The mean after it.
        size_bytes: Of the model after it, in the form that it is in then.
        seconds: What it took.
        form: ``torch`` or ``onnx``.
        notes: What it said of itself.
    """

    label: str
    kl: float | None
    kl_after: float | None
    size_bytes: int
    seconds: float
    form: str
    notes: tuple[str, ...]


def steps(lineage: Sequence[StageRecord]) -> tuple[Step, ...]:
    """Every stage with what it added to the stage measured before it.

    Figures that were measured otherwise than the artifact's (on another text or class of processor)
    are left out.
    """
    found = []
    before = 0.0
    alike = next((_how(record) for record in reversed(lineage) if record.quality), None)
    for record in lineage:
        quality = record.quality if _how(record) == alike else None
        after = None if quality is None else quality.kl_mean
        found.append(
            Step(
                label=label(record),
                kl=None if after is None else after - before,
                kl_after=after,
                size_bytes=record.size_bytes,
                seconds=record.seconds,
                form=record.form,
                notes=record.notes,
            )
        )
        before = before if after is None else after
    return tuple(found)


def costliest(lineage: Sequence[StageRecord]) -> Step | None:
    """The stage that cost most quality; None where only one was measured, or none cost any."""
    if sum(record.quality is not None for record in lineage) < 2:
        return None
    worst = worst_stage(lineage, "kl_mean")
    if worst is None:
        return None
    return next(
        step for step, record in zip(steps(lineage), lineage, strict=True) if record is worst
    )


def _how(record: StageRecord) -> tuple[str, str | None] | None:
    quality = record.quality
    return None if quality is None else (quality.isa, quality.text_sha256)


def label(record: StageRecord) -> str:
    """``quantize weight_only``."""
    return f"{record.stage} {record.method}".strip()
