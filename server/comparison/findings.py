"""Advantages and disadvantages of a variant, in sentences that are made of its figures.

Owns the sentences and when each is said. Everything that is uncertain is said with its interval;
where the interval spans zero, or the correction for many comparisons takes the difference back, it
counts as no measurable difference. Knows nothing of how figures come about.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from server.comparison.figures import Comparison, VariantFigures, Verdict
from server.comparison.measures import (
    AGREEMENT,
    DECODE_1,
    DECODE_8,
    KL,
    PREFILL,
    Unit,
    duration,
    factor,
    size,
    written,
)
from server.comparison.statistics import Estimate
from server.comparison.waterfall import costliest

_LEAST_BUILD_S = 5.0  # a build that takes less longer than the baseline's costs nobody anything
_LEAST_SIZE = 0.01  # of a change in size
_GAIN = 1.2  # an interval that reaches further does not say that there is no gain
_SPEEDS = (DECODE_1, DECODE_8, PREFILL)


@dataclass(frozen=True, slots=True)
class Findings:
    """What is good, bad and alike about a variant, beside the baseline.

    Attributes:
        advantages: One sentence each.
        disadvantages: The same.
        same: Measures without a measurable difference.
        unknown: Measures with too few samples for an interval.
    """

    advantages: tuple[str, ...] = ()
    disadvantages: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(slots=True)
class _Draft:
    advantages: list[str] = field(default_factory=list)
    disadvantages: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def findings(variant: VariantFigures, baseline: VariantFigures) -> Findings:
    """Fill in the lists of one variant."""
    draft = _Draft()
    _size(draft, variant, baseline)
    for comparison in variant.comparisons:
        _compare(draft, comparison, variant)
    _unpaired(draft, variant)
    _divergence(draft, variant)
    _stage(draft, variant)
    _zeros(draft, variant, baseline)
    _build(draft, variant, baseline)
    draft.disadvantages += [f"over its budget: {breach.rstrip('.')}" for breach in variant.breaches]
    return Findings(
        tuple(draft.advantages),
        tuple(draft.disadvantages),
        tuple(draft.same),
        tuple(draft.unknown),
    )


def interval(estimate: Estimate, unit: Unit | None = None) -> str:
    """`` [1.7, 2.1]``, empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    if unit is None:
        return f" [{_plain(estimate.low)}, {_plain(estimate.high)}]"
    low, high = written(estimate.low, unit), written(estimate.high, unit)
    return f" [{low.removesuffix(f' {unit}')}, {high.removesuffix(f' {unit}')}]"


def _plain(value: float) -> str:
    return factor(value).removesuffix("x")


def _size(draft: _Draft, variant: VariantFigures, baseline: VariantFigures) -> None:
    ours, theirs = variant.manifest.size_bytes, baseline.manifest.size_bytes
    ratio = ours / theirs
    sentence = f"artifact {factor(ratio)} the size ({size(ours)} instead of {size(theirs)})"
    if abs(ratio - 1) < _LEAST_SIZE:
        draft.same.append(f"size on disk: {size(ours)}")
    elif ratio < 1:
        draft.advantages.append(sentence)
    else:
        draft.disadvantages.append(sentence)


def _compare(draft: _Draft, comparison: Comparison, variant: VariantFigures) -> None:
    match comparison.verdict:
        case Verdict.BETTER:
            draft.advantages.append(_sentence(comparison, variant))
        case Verdict.WORSE:
            draft.disadvantages.append(_sentence(comparison, variant))
        case Verdict.SAME:
            draft.same.append(_effect(comparison))
        case Verdict.UNKNOWN:
            draft.unknown.append(_effect(comparison))


def _sentence(comparison: Comparison, variant: VariantFigures) -> str:
    measure, value = comparison.measure, comparison.value
    if comparison.is_ratio:
        ratio = f"{factor(comparison.effect.value)} the {measure.phrase}"
        figures = _both(comparison)
        return f"{ratio}{interval(comparison.effect)} ({figures})"
    told = f"{written(value.value, measure.unit)}{interval(value, measure.unit)}"
    if measure is AGREEMENT:
        return f"chooses the original's token at {told} of positions"
    quality = variant.manifest.quality
    tail = f", p99 {written(quality.kl_p99, 'nats')}" if quality is not None else ""
    return f"KL divergence from the original {told}{tail}"


def _effect(comparison: Comparison) -> str:
    """The measure and its change, for the lists of what says nothing for or against."""
    measure, effect = comparison.measure, comparison.effect
    if comparison.is_ratio:
        change = f"{factor(effect.value)}{interval(effect)}"
    else:
        unit = measure.unit
        change = f"a difference of {written(effect.value, unit)}{interval(effect, unit)}"
    reason = ""
    if comparison.verdict is Verdict.SAME and effect.excludes(1.0 if comparison.is_ratio else 0.0):
        reason = (
            ", too small to matter"
            if comparison.is_slight
            else ", which the correction for many comparisons takes back"
        )
    return f"{measure.phrase}: {change}{reason}"


def _both(comparison: Comparison) -> str:
    unit = comparison.measure.unit
    return f"{written(comparison.value.value, unit)} instead of " + written(
        comparison.base.value, unit
    )


def _unpaired(draft: _Draft, variant: VariantFigures) -> None:
    """Quality that cannot be compared document by document is told without an interval."""
    if any(comparison.measure is KL for comparison in variant.comparisons):
        return
    if (estimate := variant.quality.get(KL.key)) is not None:
        draft.unknown.append(
            f"KL divergence from the original {written(estimate.value, KL.unit)}: it was not "
            "measured on the same documents as the baseline"
        )


def _divergence(draft: _Draft, variant: VariantFigures) -> None:
    divergence, identical = variant.divergence, variant.identical
    if divergence is None or identical is None:
        return
    count = len(divergence.first)
    if identical.value == 1:
        draft.same.append(f"greedy texts: identical to the baseline's on all {count} prompts")
        return
    where = divergence.median_first
    median = "" if where is None else f"; the median first other token is number {where + 1:.0f}"
    draft.disadvantages.append(
        f"greedy texts leave the baseline's: {identical.value:.0%}{interval(identical, 'share')} "
        f"of {count} prompts are answered alike{median}"
    )


def _stage(draft: _Draft, variant: VariantFigures) -> None:
    step = costliest(variant.manifest.lineage)
    is_worse = any(
        comparison.measure is KL and comparison.verdict is Verdict.WORSE
        for comparison in variant.comparisons
    )
    quality = variant.manifest.quality
    if len(variant.manifest.chain) < 2 or step is None or step.kl is None:
        return
    if is_worse and quality is not None:
        draft.disadvantages.append(
            f"the stage that cost most quality is {step.label}: "
            f"{written(step.kl, 'nats')} of {written(quality.kl_mean, 'nats')}"
        )


def _zeros(draft: _Draft, variant: VariantFigures, baseline: VariantFigures) -> None:
    """Zeros save nothing here; what they would save compressed is told beside it."""
    zeros = max((record.zeros or 0 for record in variant.manifest.lineage), default=0)
    if not zeros or any(record.zeros for record in baseline.manifest.lineage):
        return
    speeds = [c for c in variant.comparisons if c.measure in _SPEEDS]
    shown = ", ".join(
        f"{c.measure.phrase} {factor(c.effect.value)}{interval(c.effect)}" for c in speeds
    )
    if speeds and all(_excludes_gain(c.effect) for c in speeds):
        draft.disadvantages.append(
            f"no faster: dense kernels multiply its {zeros:,} zeros like other weights ({shown})"
        )
    elif not any(c.verdict is Verdict.BETTER for c in speeds):
        draft.unknown.append(f"whether its {zeros:,} zeros gain any speed ({shown})")
    compressed = variant.manifest.lineage[-1].compressed_bytes
    if compressed is not None:
        stored = variant.manifest.size_bytes
        draft.advantages.append(
            f"compressed on disk it would be {size(compressed)} of {size(stored)}"
        )


def _excludes_gain(effect: Estimate) -> bool:
    """Whether an interval has room for no gain, and for none worth its name."""
    if effect.low is None or effect.high is None:
        return False
    return effect.low <= 1 and effect.high < _GAIN


def _build(draft: _Draft, variant: VariantFigures, baseline: VariantFigures) -> None:
    ours, theirs = variant.build_s, baseline.build_s
    if ours > theirs + _LEAST_BUILD_S:
        draft.disadvantages.append(
            f"takes {duration(ours)} to build, the baseline {duration(theirs)}"
        )
