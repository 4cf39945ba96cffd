"""What a variant may lose, and whether an artifact keeps to it: pure judging of figures.

Owns the limits and their direction, the sentence that tells a breach, which stage cost most, and
where a chain may be cut. Knows nothing of how figures come about or of what follows a breach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from artifacts.manifest import Manifest, Quality, StageRecord

Limit = Literal["kl_mean", "kl_p99", "top1_agreement", "perplexity_ratio", "size_bytes"]
"""What can be limited, by the names of the config's fields."""

LIMITS: tuple[Limit, ...] = (
    "kl_mean",
    "kl_p99",
    "top1_agreement",
    "perplexity_ratio",
    "size_bytes",
)

_AT_LEAST: frozenset[Limit] = frozenset({"top1_agreement"})  # all others are "at most"
_OF_THE_ORIGINAL: Mapping[Limit, float] = {
    "kl_mean": 0.0,
    "kl_p99": 0.0,
    "top1_agreement": 1.0,
    "perplexity_ratio": 1.0,
}
_DAMAGING = frozenset({"restructure", "prune"})


class OnBreach(StrEnum):
    """What follows a breach."""

    REFUSE = "refuse"
    ROLLBACK = "rollback"
    WARN = "warn"


class When(StrEnum):
    """When a finished artifact is judged."""

    BEFORE_SERVING = "before_serving"
    AFTER_SERVING = "after_serving"


@dataclass(frozen=True, slots=True)
class Breach:
    """One limit that is not kept.

    Attributes:
        field: Which one.
        limit: The most (of ``top1_agreement`` the least) that is allowed.
        measured: What it is; None when the figure is missing, which keeps to no limit.
        sentence: Both, for a person.
    """

    field: Limit
    limit: float
    measured: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one variant; None is not judged.

    Attributes:
        kl_mean: KL(original || variant) in nats, the mean, at most.
        kl_p99: The same, its 99th percentile over positions.
        top1_agreement: Share of positions with the original's likeliest token, at least.
        perplexity_ratio: Perplexity over the original's, on a user's text, at most.
        size_bytes: Of all the artifact's files together, at most.
        on_breach: What follows a breach.
        when: When it is judged.
    """

    kl_mean: float | None = None
    kl_p99: float | None = None
    top1_agreement: float | None = None
    perplexity_ratio: float | None = None
    size_bytes: int | None = None
    on_breach: OnBreach = OnBreach.REFUSE
    when: When = When.BEFORE_SERVING

    @property
    def limits(self) -> dict[Limit, float]:
        """The limits that are set."""
        named = {field: getattr(self, field) for field in LIMITS}
        return {field: limit for field, limit in named.items() if limit is not None}

    @property
    def needs_quality(self) -> bool:
        """Whether a limit is set that only measuring can judge."""
        return any(field in _OF_THE_ORIGINAL for field in self.limits)

    def breaches(self, quality: Quality | None, size_bytes: int) -> tuple[Breach, ...]:
        """The limits that figures do not keep, in the order of ``LIMITS``."""
        found = []
        for field, limit in self.limits.items():
            measured = size_bytes if field == "size_bytes" else measure(field, quality)
            if not _keeps(field, measured, limit):
                found.append(Breach(field, limit, measured, _sentence(field, measured, limit)))
        return tuple(found)

    def missing(self, quality: Quality | None) -> tuple[Limit, ...]:
        """The limits that these figures do not say enough to judge."""
        quality_limits = (field for field in self.limits if field in _OF_THE_ORIGINAL)
        return tuple(field for field in quality_limits if measure(field, quality) is None)


def measure(field: Limit, quality: Quality | None) -> float | None:
    """The figure that a limit is about, None where quality does not tell it."""
    if quality is None or field == "size_bytes":
        return None
    if field != "perplexity_ratio":
        return float(getattr(quality, field))
    if quality.perplexity is None or not quality.original_perplexity:
        return None
    return quality.perplexity / quality.original_perplexity


def worst_stage(lineage: Sequence[StageRecord], field: Limit) -> StageRecord | None:
    """The waterfall: the stage that made a figure worse than the stage before it by most.

    The first is compared with the original. None where that shows no culprit: no stage made it
    worse, or not every stage was measured alike (on one text, on one class of processor).
    """
    worst, most = None, 0.0
    for record, cost in _waterfall(lineage, field):
        if cost > most or math.isnan(cost):
            worst, most = record, cost
        if math.isnan(cost):  # what follows a figure that is none cannot be told
            break
    return worst


def told(breaches: Sequence[Breach], manifest: Manifest) -> tuple[str, ...]:
    """Each breach in one sentence, with the stage that cost most where that is known."""
    sentences = []
    for breach in breaches:
        worst = worst_stage(manifest.lineage, breach.field)
        if worst is None:
            sentences.append(f"{breach.sentence}.")
        else:
            name = f"{worst.stage} ({worst.method})" if worst.method else worst.stage
            sentences.append(f"{breach.sentence}; the stage that cost most is {name}.")
    return tuple(sentences)


def prefixes(chain: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """How many stages of a chain may be kept in a rollback, longest first, down to none.

    ``restructure`` and ``prune`` count as one with the ``distill: recover`` that follows them:
    what they damage is never served without what mends it.
    """
    return tuple(kept for kept in reversed(range(len(chain))) if _may_end(chain, kept))


def _may_end(chain: Sequence[Mapping[str, Any]], kept: int) -> bool:
    if not kept or not _damages(chain[kept - 1]):
        return True
    following = [stage for stage in chain[kept:] if not _damages(stage)]
    return not (following and _recovers(following[0]))


def _damages(stage: Mapping[str, Any]) -> bool:
    return not _DAMAGING.isdisjoint(stage)


def _recovers(stage: Mapping[str, Any]) -> bool:
    fields = stage.get("distill") or {}
    return fields.get("method") == "recover" or "recover" in fields


def _waterfall(lineage: Sequence[StageRecord], field: Limit) -> list[tuple[StageRecord, float]]:
    """Each stage and by how much it made the figure worse (below 0: better)."""
    if field == "size_bytes":
        steps = zip(lineage[1:], lineage[:-1], strict=True)
        return [(record, float(record.size_bytes - before.size_bytes)) for record, before in steps]
    if len({_measured_how(record.quality) for record in lineage}) != 1:
        return []
    costs: list[tuple[StageRecord, float]] = []
    before = _OF_THE_ORIGINAL[field]
    for record in lineage:
        figure = measure(field, record.quality)
        if figure is None:
            return []
        costs.append((record, before - figure if field in _AT_LEAST else figure - before))
        before = figure
    return costs


def _measured_how(quality: Quality | None) -> tuple[str, str | None] | None:
    return None if quality is None else (quality.isa, quality.text_sha256)


def _keeps(field: Limit, measured: float | None, limit: float) -> bool:
    """Whether a figure keeps to its limit; one that is missing, or no number, does not."""
    if measured is None:
        return False
    return measured >= limit if field in _AT_LEAST else measured <= limit


def _sentence(field: Limit, measured: float | None, limit: float) -> str:
    bound = "at least" if field in _AT_LEAST else "at most"
    if measured is None:
        return f"{field} is not measured and may be {bound} {_shown(field, limit)}"
    digits = 5
    while _shown(field, measured, digits) == _shown(field, limit, digits) and digits < 17:
        digits += 1  # a breach by a hair is one all the same, and should look like it
    figures = _shown(field, measured, digits), _shown(field, limit, digits)
    return f"{field} is {figures[0]} and may be {bound} {figures[1]}"


def _shown(field: Limit, value: float, digits: int = 5) -> str:
    return f"{value:,.0f}" if field == "size_bytes" else f"{value:.{digits}g}"
