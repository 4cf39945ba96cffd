"""Each sentence comes from its figures, and does not come where they do not say so."""

from __future__ import annotations

from typing import Any

import pytest

from artifacts.manifest import StageRecord
from server.comparison.divergence import Divergence
from server.comparison.figures import Subject, Verdict, figures
from server.comparison.findings import Findings, findings
from tests.server.comparison.planted import DRIFT, NOISE, MakeSubject, quality, speed


def found(baseline: Subject, *others: Subject) -> Findings:
    """What is said of the last variant."""
    variants = figures([baseline, *others])
    return findings(variants[-1], variants[0])


def speeds(factor: float) -> list[Any]:
    """Five rounds that are this many times as fast, give or take a percent or two."""
    return [speed(factor * drift * noise) for drift, noise in zip(DRIFT, NOISE, strict=True)]


def test_a_faster_variant_is_said_to_be_with_its_interval(subject: MakeSubject) -> None:
    """Twice as fast in every round of a machine that drifts."""
    lists = found(subject(), subject("fast", speeds=speeds(2.0)))
    (decoding,) = [line for line in lists.advantages if "one stream" in line]
    assert decoding.startswith("2.00x the decoding speed of one stream [1.96, 2.04] (96.")
    assert "instead of" in decoding
    (first,) = [line for line in lists.advantages if "time to the first token" in line]
    assert first.startswith("0.50x")
    assert not lists.disadvantages


def test_a_slower_variant_has_the_same_as_disadvantages(subject: MakeSubject) -> None:
    """The twin of the one above."""
    lists = found(subject(), subject("slow", speeds=speeds(0.5)))
    assert not lists.advantages
    assert any(line.startswith("0.50x the decoding speed of one") for line in lists.disadvantages)
    assert any(line.startswith("2.00x the time to the first token") for line in lists.disadvantages)


def test_an_interval_that_spans_one_is_no_difference(subject: MakeSubject) -> None:
    """Noise alone is neither for nor against."""
    lists = found(subject(), subject("same", speeds=speeds(1.0)))
    assert not lists.advantages
    assert not lists.disadvantages
    assert any(line.startswith("decoding speed of one stream: 1.00x [") for line in lists.same)


def test_a_sure_but_tiny_change_is_told_as_such(subject: MakeSubject) -> None:
    """Half a percent of memory in every round."""
    leaner = [speed(drift) for drift in DRIFT]
    baseline = subject(speeds=[_with_memory(one, 201_000_000 + i) for i, one in enumerate(leaner)])
    lists = found(baseline, subject("leaner", speeds=leaner))
    (line,) = [line for line in lists.same if "resident memory" in line]
    assert "too small to matter" in line


def test_the_correction_takes_weak_differences_back(subject: MakeSubject) -> None:
    """One interval that excludes 1 by little stands alone, but not among forty comparisons."""
    weak = [1.10, 1.03, 1.09, 1.03, 1.02]
    rounds = [speed(drift * more) for drift, more in zip(DRIFT, weak, strict=True)]
    baseline = subject()
    (_, variant) = figures([baseline, subject("weak", speeds=rounds)])
    (decoding,) = [c for c in variant.comparisons if c.measure.key.startswith("decode_1_")]
    assert decoding.effect.excludes(1.0)
    assert decoding.adjusted_p is not None
    assert decoding.effect.p is not None
    assert decoding.adjusted_p > decoding.effect.p
    assert decoding.verdict is Verdict.SAME
    lists = findings(variant, figures([baseline])[0])
    assert any("correction" in line for line in lists.same)


def test_two_rounds_say_nothing_sure(subject: MakeSubject) -> None:
    """Without an interval a factor of two is in neither list."""
    lists = found(
        subject(speeds=[speed(1.0)] * 2), subject("fast", speeds=[speed(2.0)] * 2, of=quality(0.0))
    )
    assert not lists.advantages
    assert any(line.startswith("decoding speed of one stream: 2.00x") for line in lists.unknown)


def test_lost_quality_is_a_disadvantage_with_its_interval(subject: MakeSubject) -> None:
    """KL with p99, agreement and perplexity, all by document."""
    lists = found(subject(), subject("lossy", of=quality(0.05, agreement=0.9)))
    kl, agreement, perplexity = lists.disadvantages
    assert kl.startswith("KL divergence from the original 0.0508 nats [0.0489, 0.0526]")
    assert kl.endswith("p99 0.500 nats")
    assert agreement.startswith("chooses the original's token at 89.8% [")
    assert perplexity.startswith("1.03x the perplexity [1.02, 1.03]")


def test_equal_quality_is_no_difference(subject: MakeSubject) -> None:
    """The twin of the one above."""
    lists = found(subject(), subject("same"))
    assert not lists.disadvantages
    assert "KL divergence from the original: a difference of 0 nats [0, 0]" in lists.same


def test_quality_on_another_text_is_not_compared(subject: MakeSubject) -> None:
    """Documents that differ are no pairs."""
    lists = found(subject(), subject("other", of=quality(0.05, text="d" * 64)))
    assert any("not measured on the same documents" in line for line in lists.unknown)
    assert not any("KL" in line for line in (*lists.disadvantages, *lists.same))


@pytest.mark.parametrize(
    ("size_bytes", "place"),
    [(5_000_000, "advantages"), (50_000_000, "disadvantages"), (25_100_000, "same")],
)
def test_size_is_exact(subject: MakeSubject, size_bytes: int, place: str) -> None:
    """Smaller, larger, or within a percent."""
    lists = found(subject(), subject("sized", size_bytes=size_bytes))
    places = {name: any("size" in line for line in getattr(lists, name)) for name in _LISTS}
    assert places == {name: name == place for name in _LISTS}


_LISTS = ("advantages", "disadvantages", "same")


_TWO: tuple[dict[str, Any], ...] = ({"restructure": {}}, {"quantize": {}})


def _pruned(zeros: int, **more: Any) -> list[StageRecord]:
    export = StageRecord(
        stage="export",
        form="onnx",
        seconds=1.0,
        size_bytes=25_000_000,
        zeros=zeros,
        quality=quality(0.02),
        **more,
    )
    return [
        StageRecord(
            stage="prune",
            method="magnitude",
            form="torch",
            seconds=1.0,
            size_bytes=1,
            zeros=zeros,
            quality=quality(0.02),
        ),
        export,
    ]


def test_zeros_that_bring_no_speed_are_said_to(subject: MakeSubject) -> None:
    """Dense kernels multiply zeros like anything else."""
    lists = found(
        subject(), subject("pruned", speeds=speeds(1.0), lineage=_pruned(1234), of=quality(0.02))
    )
    (line,) = [line for line in lists.disadvantages if line.startswith("no faster")]
    assert "its 1,234 zeros" in line
    assert "decoding speed of one stream 1.00x [" in line


def test_uncertain_speed_is_not_said_to_be_no_faster(subject: MakeSubject) -> None:
    """An interval that has room for a gain of half says nothing about zeros."""
    wide = [
        speed(drift * more) for drift, more in zip(DRIFT, (0.7, 1.4, 1.0, 1.5, 0.8), strict=True)
    ]
    lists = found(subject(), subject("pruned", speeds=wide, lineage=_pruned(1234)))
    assert not any("no faster" in line for line in lists.disadvantages)
    assert any(line.startswith("whether its 1,234 zeros gain any") for line in lists.unknown)


@pytest.mark.parametrize(("zeros", "factor"), [(0, 1.0), (1234, 2.0)])
def test_no_zeros_or_more_speed_is_not_said_to_be_no_faster(
    subject: MakeSubject, zeros: int, factor: float
) -> None:
    """The twin of the one above."""
    lists = found(subject(), subject("pruned", speeds=speeds(factor), lineage=_pruned(zeros)))
    assert not any("no faster" in line for line in lists.disadvantages)


def test_the_stage_that_cost_most_is_named(subject: MakeSubject) -> None:
    """0.04 of 0.05 nats are the second stage's."""
    stages = [
        StageRecord(
            stage=stage, method=method, form="onnx", seconds=1.0, size_bytes=1, quality=quality(kl)
        )
        for stage, method, kl in (("export", "mobius", 0.01), ("quantize", "weight_only", 0.05))
    ]
    lists = found(subject(), subject("int4", chain=_TWO, lineage=stages))
    assert (
        "the stage that cost most quality is quantize weight_only: 0.0400 nats of 0.0500 nats"
        in lists.disadvantages
    )


def test_texts_that_leave_the_baselines_are_told(subject: MakeSubject) -> None:
    """Half identical; of identical ones nothing is said against."""
    first = (0, None, 4, None, 9, None, 2, 3)
    lists = found(subject(), subject("int4", divergence=Divergence(first, 64)))
    (line,) = [line for line in lists.disadvantages if "greedy" in line]
    assert "38%" in line
    assert "the median first other token is number 8" in line  # between 4 and 9, counted from 1
    alike = found(subject(), subject("same", divergence=Divergence((None,) * 8, 64)))
    assert not any("greedy" in line for line in alike.disadvantages)
    assert "greedy texts: identical to the baseline's on all 8 prompts" in alike.same


def test_a_breach_of_the_budget_and_a_long_build_are_told(subject: MakeSubject) -> None:
    """Over-budget variants are measured, and marked."""
    slow = [
        StageRecord(stage="distill", form="torch", seconds=600.0, size_bytes=1, quality=quality(0))
    ]
    lists = found(subject(), subject("over", breaches=("kl_mean is 1",), lineage=slow))
    assert "over its budget: kl_mean is 1" in lists.disadvantages
    assert "takes 10 min to build, the baseline 2.00 s" in lists.disadvantages


def _with_memory(one: Any, resident_bytes: int) -> Any:
    from dataclasses import replace

    return replace(one, resident_bytes=resident_bytes)
