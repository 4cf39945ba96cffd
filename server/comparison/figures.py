"""From rounds and manifests to figures with intervals, and to comparisons with the baseline.

Owns what is compared with what, and the correction over all comparisons of a report. Knows nothing
of how a figure is told (``findings``) or drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from artifacts.manifest import DocumentQuality, Manifest
from server.comparison import statistics
from server.comparison.divergence import Divergence
from server.comparison.load import QUIET_CORES
from server.comparison.measures import (
    AGREEMENT,
    KL,
    PERPLEXITY,
    SPEEDS,
    Measure,
)
from server.comparison.speed import Speed
from server.comparison.statistics import Estimate

PERCENTILES = (0.5, 0.9, 0.95, 0.99)
_ERROR = 0.05
_LEAST_RATIO = 0.01  # less of a change is not worth a sentence, however sure it is
_LEAST_KL = 1e-6  # nats: what storing the original's log-probabilities in 16 bits costs


class Verdict(StrEnum):
    """How a variant compares with the baseline in one measure."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "no measurable difference"
    UNKNOWN = "too few samples"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One variant and the baseline in one measure.

    Attributes:
        measure: Which.
        value: The variant's.
        base: The baseline's.
        effect: The ratio, or for KL and agreement the difference.
        is_ratio: Which of both.
        adjusted_p: Corrected for all comparisons of the report; None when not tested.
    """

    measure: Measure
    value: Estimate
    base: Estimate
    effect: Estimate
    is_ratio: bool
    adjusted_p: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Better or worse only where the interval and the corrected p-value both say so."""
        null = 1.0 if self.is_ratio else 0.0
        if self.effect.low is None or self.adjusted_p is None:
            return Verdict.UNKNOWN
        if not self.effect.excludes(null) or self.adjusted_p >= _ERROR or self.is_slight:
            return Verdict.SAME
        became = "more" if self.effect.value > null else "less"
        return Verdict.BETTER if became == self.measure.better else Verdict.WORSE

    @property
    def is_slight(self) -> bool:
        """Whether the change is too small to matter."""
        if self.is_ratio:
            return abs(math.log(self.effect.value)) < math.log1p(_LEAST_RATIO)
        return self.measure is KL and abs(self.effect.value) < _LEAST_KL


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """All figures of one variant.

    Attributes:
        name: Its key in the config.
        artifact: Digest.
        manifest: What is known of the artifact: chain, lineage, size, quality.
        rounds: Its rounds' figures, in order.
        speeds: Estimate of each speed measure, by key; empty without a round.
        quality: Estimate of each quality measure, by key.
        first_token_s: Percentiles over all rounds' samples; None where there are too few.
        inter_token_s: The same of times between tokens.
        divergence: From the baseline's greedy texts.
        identical: Share of prompts with the baseline's text.
        comparisons: With the baseline; empty for the baseline.
        breaches: Limits of its budget that it does not keep, one sentence each.
        failure: Why figures are missing.
    """

    name: str
    artifact: str
    manifest: Manifest
    rounds: tuple[Speed, ...]
    speeds: Mapping[str, Estimate]
    quality: Mapping[str, Estimate]
    first_token_s: Mapping[float, float | None]
    inter_token_s: Mapping[float, float | None]
    divergence: Divergence | None = None
    identical: Estimate | None = None
    comparisons: tuple[Comparison, ...] = ()
    breaches: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def build_s(self) -> float:
        """Seconds that all its stages took together when they were run."""
        return sum(record.seconds for record in self.manifest.lineage)

    @property
    def disturbed(self) -> int:
        """Rounds in which others used the machine."""
        return sum(speed.others_cores > QUIET_CORES for speed in self.rounds)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is known of a variant before anything is computed."""

    name: str
    artifact: str
    manifest: Manifest
    speeds: Mapping[int, Speed]
    divergence: Divergence | None = None
    breaches: tuple[str, ...] = ()
    failure: str | None = None


def figures(subjects: Sequence[Subject]) -> tuple[VariantFigures, ...]:
    """Figures of all variants; the first subject is the baseline."""
    baseline = subjects[0]
    plain = [_plain(subject) for subject in subjects]
    compared = [
        () if subject is baseline else _comparisons(ours, plain[0], subject, baseline)
        for subject, ours in zip(subjects, plain, strict=True)
    ]
    corrected = _corrected([comparison for several in compared for comparison in several])
    result = []
    for ours, several in zip(plain, compared, strict=True):
        own, corrected = corrected[: len(several)], corrected[len(several) :]
        result.append(replace(ours, comparisons=tuple(own)))
    return tuple(result)


def _plain(subject: Subject) -> VariantFigures:
    rounds = tuple(subject.speeds[round_] for round_ in sorted(subject.speeds))
    divergence = subject.divergence
    return VariantFigures(
        name=subject.name,
        artifact=subject.artifact,
        manifest=subject.manifest,
        rounds=rounds,
        speeds={
            measure.key: statistics.typical([measure.of(speed) for speed in rounds])
            for measure in SPEEDS
            if rounds
        },
        quality=_quality(subject.manifest),
        first_token_s=_percentiles([s for speed in rounds for s in speed.first_token_s]),
        inter_token_s=_percentiles([s for speed in rounds for s in speed.inter_token_s]),
        divergence=divergence,
        identical=None
        if divergence is None or not divergence.first
        else statistics.share_over_prompts(divergence.identical),
        breaches=subject.breaches,
        failure=subject.failure,
    )


def _percentiles(samples: Sequence[float]) -> dict[float, float | None]:
    return {p: statistics.percentile(samples, p) for p in PERCENTILES}


def _quality(manifest: Manifest) -> dict[str, Estimate]:
    """Estimates of the quality measures; without documents the figures stand without interval."""
    quality = manifest.quality
    if quality is None:
        return {}
    plain = {KL: quality.kl_mean, AGREEMENT: quality.top1_agreement, PERPLEXITY: quality.perplexity}
    found = {key: _over(quality.by_document, key) for key in plain}
    return {
        measure.key: estimate if (estimate := found[measure]) is not None else Estimate(value)
        for measure, value in plain.items()
        if value is not None
    }


def _comparisons(
    ours: VariantFigures, base: VariantFigures, subject: Subject, baseline: Subject
) -> tuple[Comparison, ...]:
    both = sorted(subject.speeds.keys() & baseline.speeds.keys())
    found = [
        Comparison(
            measure,
            ours.speeds[measure.key],
            base.speeds[measure.key],
            statistics.ratio_over_rounds(
                [measure.of(subject.speeds[round_]) for round_ in both],
                [measure.of(baseline.speeds[round_]) for round_ in both],
            ),
            is_ratio=True,
        )
        for measure in SPEEDS
        if both
    ]
    documents = _paired(ours.manifest, base.manifest)
    for measure in (KL, AGREEMENT, PERPLEXITY):
        effect = _difference(documents, measure)
        if effect is not None:
            value, before = ours.quality[measure.key], base.quality[measure.key]
            found.append(Comparison(measure, value, before, effect, is_ratio=measure is PERPLEXITY))
    return tuple(found)


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    tested = [(index, c.effect.p) for index, c in enumerate(comparisons) if c.effect.p is not None]
    adjusted = statistics.holm([p for _, p in tested])
    corrected = list(comparisons)
    for (index, _), p in zip(tested, adjusted, strict=True):
        corrected[index] = replace(corrected[index], adjusted_p=p)
    return corrected


Pair = tuple[DocumentQuality, DocumentQuality]


def _paired(ours: Manifest, base: Manifest) -> tuple[Pair, ...]:
    """Documents of both; none unless both were measured on the same."""
    one, other = ours.quality, base.quality
    if one is None or other is None or one.text_sha256 != other.text_sha256:
        return ()
    if [x.positions for x in one.by_document] != [x.positions for x in other.by_document]:
        return ()
    return tuple(zip(one.by_document, other.by_document, strict=True))


def _value(document: DocumentQuality, measure: Measure) -> float | None:
    if measure is KL:
        return document.kl_mean
    return document.agreement if measure is AGREEMENT else document.nll


def _over(documents: Sequence[DocumentQuality], measure: Measure) -> Estimate | None:
    values = [_value(document, measure) for document in documents]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    estimate = statistics.mean_over_documents(known, [x.positions for x in documents])
    return _exponential(estimate) if measure is PERPLEXITY else estimate


def _difference(pairs: Sequence[Pair], measure: Measure) -> Estimate | None:
    """Ours minus the baseline's, document by document; of perplexities the ratio."""
    differences = []
    for one, other in pairs:
        ours, theirs = _value(one, measure), _value(other, measure)
        if ours is None or theirs is None:
            return None
        differences.append(ours - theirs)
    if not differences:
        return None
    estimate = statistics.mean_over_documents(differences, [one.positions for one, _ in pairs])
    return _exponential(estimate) if measure is PERPLEXITY else estimate


def _exponential(nats: Estimate) -> Estimate:
    return Estimate(
        math.exp(nats.value),
        None if nats.low is None else math.exp(nats.low),
        None if nats.high is None else math.exp(nats.high),
        nats.p,
    )
