"""A budget is kept or not, whoever made the artifact."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from artifacts.manifest import Manifest, Quality, StageRecord
from server.budget import LIMITS, Budget, Limit, prefixes, told, worst_stage

QUALITY = Quality(
    kl_mean=0.25,
    kl_p99=2.0,
    top1_agreement=0.875,
    perplexity=15.0,
    original_perplexity=10.0,
    documents=4,
    positions=100,
    isa="x86_64-avx2",
)
SIZE = 1000
EXACT: dict[Limit, float] = {
    "kl_mean": 0.25,
    "kl_p99": 2.0,
    "top1_agreement": 0.875,
    "perplexity_ratio": 1.5,
    "size_bytes": SIZE,
}


def budget(**limits: Any) -> Budget:
    return Budget(**limits)


def record(stage: str, *, size_bytes: int = 0, **figures: Any) -> StageRecord:
    return StageRecord(
        stage=stage,
        form="onnx",
        seconds=0.0,
        size_bytes=size_bytes,
        quality=QUALITY.model_copy(update=figures) if figures else None,
    )


def test_every_limit_has_a_case() -> None:
    """Whoever adds one says here what keeps to it."""
    assert set(EXACT) == set(LIMITS)


@pytest.mark.parametrize("field", LIMITS)
def test_a_limit_is_kept_up_to_its_value_and_not_beyond(field: Limit) -> None:
    """The twin of each limit is one that is a hair narrower."""
    narrower = EXACT[field] + (1e-9 if field == "top1_agreement" else -1e-9)
    if field == "size_bytes":
        narrower = SIZE - 1
    assert budget(**{field: EXACT[field]}).breaches(QUALITY, SIZE) == ()
    (breach,) = budget(**{field: narrower}).breaches(QUALITY, SIZE)
    assert (breach.field, breach.limit, breach.measured) == (field, narrower, EXACT[field])
    figures = breach.sentence.split(" is ")[1].split(" and may be ")
    assert figures[0] != figures[1].split(maxsplit=2)[2]


def test_without_limits_nothing_is_judged() -> None:
    """Unset is not zero."""
    assert Budget().breaches(None, 1 << 60) == ()
    assert Budget().limits == {}


def test_all_breaches_are_told_in_order() -> None:
    """Who raises one limit should know of the next."""
    tight = Budget(0.1, 1.0, 0.99, 1.1, 10)
    assert [breach.field for breach in tight.breaches(QUALITY, SIZE)] == list(LIMITS)


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_a_broken_model_keeps_to_no_limit(figure: float) -> None:
    """A comparison with a figure that is no number must not pass for one that holds."""
    broken = QUALITY.model_copy(update={"kl_mean": figure})
    assert [one.field for one in budget(kl_mean=1e9).breaches(broken, 0)] == ["kl_mean"]
    broken = QUALITY.model_copy(update={"top1_agreement": float("nan")})
    assert len(budget(top1_agreement=0.0).breaches(broken, 0)) == 1


def test_a_figure_that_is_missing_keeps_to_no_limit() -> None:
    """Perplexity is told of a user's text only; a size needs no measuring."""
    sampled = QUALITY.model_copy(update={"perplexity": None, "original_perplexity": None})
    limits = budget(perplexity_ratio=1e9, kl_mean=1.0, size_bytes=SIZE)
    assert limits.missing(sampled) == ("perplexity_ratio",)
    assert limits.missing(QUALITY) == ()
    assert limits.missing(None) == ("kl_mean", "perplexity_ratio")
    (breach,) = limits.breaches(sampled, SIZE)
    assert (breach.field, breach.measured) == ("perplexity_ratio", None)
    assert "not measured" in breach.sentence


@pytest.mark.parametrize(
    ("field", "figures", "worst"),
    [
        ("kl_mean", (0.4, 0.1, 0.1, 0.3), "prune"),  # recovered later, and still the first to ask
        ("kl_mean", (0.1, 0.05, 0.05, 0.3), "quantize"),
        ("kl_p99", (0.5, 0.4, 1.2, 1.3), "export"),
        ("top1_agreement", (0.9, 0.95, 0.95, 0.7), "quantize"),
        ("top1_agreement", (0.7, 0.95, 0.95, 0.7), "prune"),
    ],
)
def test_the_waterfall_names_the_steepest_fall(
    field: Limit, figures: tuple[float, ...], worst: str
) -> None:
    """Each stage against the one before it, the first against the original."""
    stages = ("prune", "distill", "export", "quantize")
    lineage = [record(name, **{field: one}) for name, one in zip(stages, figures, strict=True)]
    found = worst_stage(lineage, field)
    assert found is not None
    assert found.stage == worst


def test_the_waterfall_agrees_with_a_slow_one() -> None:
    """Against all differences, spelt out, for every lineage of three stages on a grid."""
    for figures in itertools.product([0.1, 0.25, 0.7, 0.75], repeat=3):
        lineage = [record(str(index), kl_mean=one) for index, one in enumerate(figures)]
        costs = [b - a for a, b in itertools.pairwise([0.0, *figures])]
        found = worst_stage(lineage, "kl_mean")
        assert found is not None
        assert costs[int(found.stage)] == max(costs)


def test_no_stage_is_blamed_where_the_waterfall_has_holes() -> None:
    """Figures of another text or processor, or none at all, are not steps of one fall."""
    last = record("quantize", kl_mean=0.5)
    whole = [record("export", kl_mean=0.0), last]
    assert worst_stage(whole, "kl_mean") == last
    assert worst_stage([record("export"), last], "kl_mean") is None
    elsewhere = record("export", kl_mean=0.0, isa="aarch64-i8mm")
    assert worst_stage([elsewhere, last], "kl_mean") is None
    other_text = record("export", kl_mean=0.0, text_sha256="0" * 64)
    assert worst_stage([other_text, last], "kl_mean") is None
    assert worst_stage([], "kl_mean") is None


def test_a_stage_that_broke_the_model_is_named() -> None:
    """After a figure that is no number nothing later is told from it."""
    nan = float("nan")
    lineage = [record("prune", kl_mean=0.1), record("quantize", kl_mean=nan)]
    found = worst_stage([*lineage, record("quantize_kv", kl_mean=nan)], "kl_mean")
    assert found == lineage[1]


def test_a_size_blames_only_a_stage_that_made_it_larger() -> None:
    """Every stage makes it smaller: the limit is too small, and no stage is at fault."""
    shrinking = [record("export", size_bytes=100), record("quantize", size_bytes=30)]
    assert worst_stage(shrinking, "size_bytes") is None
    growing = [record("prune", size_bytes=100), record("export", size_bytes=130)]
    assert worst_stage(growing, "size_bytes") == growing[1]


def test_a_breach_is_told_with_the_stage_at_fault(manifest: Manifest) -> None:
    """Limit, figure and stage in one sentence."""
    quality = QUALITY.model_copy(update={"kl_mean": 0.002})
    export = manifest.lineage[0].model_copy(update={"quality": quality})
    last = manifest.lineage[1].model_copy(update={"quality": QUALITY})
    whole = manifest.model_copy(update={"lineage": (export, last)})
    breaches = budget(kl_mean=0.05, size_bytes=10).breaches(whole.quality, whole.size_bytes)
    culprit = "the stage that cost most is quantize (weight_only)."
    assert told(breaches, whole) == (
        f"kl_mean is 0.25 and may be at most 0.05; {culprit}",
        "size_bytes is 1,000 and may be at most 10.",
    )


RESTRUCTURE: dict[str, Any] = {"restructure": {"method": "drop_layers"}}
PRUNE: dict[str, Any] = {"prune": {"method": "wanda"}}
RECOVER: dict[str, Any] = {"distill": {"method": "recover"}}
SUBSTITUTE: dict[str, Any] = {"distill": {"substitute": "demo"}}
QUANTIZE: dict[str, Any] = {"quantize": {"method": "weight_only"}}


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([], ()),
        ([QUANTIZE], (0,)),
        ([PRUNE, QUANTIZE], (1, 0)),
        ([SUBSTITUTE, RESTRUCTURE, PRUNE, QUANTIZE], (3, 2, 1, 0)),
        ([PRUNE, RECOVER, QUANTIZE], (2, 0)),
        ([PRUNE, {"distill": {"recover": {"tokens": 1}}}], (0,)),
        ([SUBSTITUTE, RESTRUCTURE, PRUNE, RECOVER, QUANTIZE], (4, 1, 0)),
        ([RESTRUCTURE, RECOVER, PRUNE, RECOVER, QUANTIZE], (4, 2, 0)),
        ([RESTRUCTURE, RECOVER, PRUNE, QUANTIZE], (3, 2, 0)),
    ],
)
def test_a_rollback_never_parts_damage_from_its_recovery(
    chain: list[dict[str, Any]], expected: tuple[int, ...]
) -> None:
    """They count as one: a pruned model without its training is nobody's choice."""
    assert prefixes(chain) == expected
