"""The report for programs: every figure, unrounded, under the names of ``measures``.

Owns the JSON form. Knows nothing of sentences' layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from server.comparison.figures import Comparison, VariantFigures
from server.comparison.report import Report
from server.comparison.statistics import Estimate

FORMAT = 1


def render(report: Report) -> str:
    """The whole report."""
    return json.dumps(_content(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _content(report: Report) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": report.model,
        "revision": report.revision,
        "text": report.text,
        "machine": report.machine.as_json(),
        "began": report.began,
        "rounds": report.rounds,
        "complete": report.complete,
        "quick": report.quick,
        "baseline": report.baseline.name,
        "remarks": list(report.remarks),
        "failed": dict(report.failed),
        "variants": {variant.name: _variant(report, variant) for variant in report.variants},
    }


def _variant(report: Report, variant: VariantFigures) -> dict[str, Any]:
    manifest, divergence = variant.manifest, variant.divergence
    findings = report.findings.get(variant.name)
    return {
        "artifact": variant.artifact,
        "recipe": manifest.recipe,
        "chain": [dict(stage) for stage in manifest.chain],
        "size_bytes": manifest.size_bytes,
        "build_seconds": variant.build_s,
        "speeds": _estimates(variant.speeds),
        "quality": _estimates(variant.quality),
        "kl_p99": None if manifest.quality is None else manifest.quality.kl_p99,
        "time_to_first_token_seconds": _percentiles(variant.first_token_s),
        "inter_token_seconds": _percentiles(variant.inter_token_s),
        "divergence": None
        if divergence is None
        else {
            "first": list(divergence.first),
            "new_tokens": divergence.new_tokens,
            "identical": None if variant.identical is None else _estimate(variant.identical),
        },
        "comparisons": {c.measure.key: _comparison(c) for c in variant.comparisons},
        "breaches": list(variant.breaches),
        "failure": variant.failure,
        "disturbed_rounds": variant.disturbed,
        "rounds": [asdict(speed) for speed in variant.rounds],
        "lineage": [record.model_dump(mode="json") for record in manifest.lineage],
        "findings": None if findings is None else asdict(findings),
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _estimates(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {key: _estimate(estimate) for key, estimate in estimates.items()}


def _percentiles(found: Mapping[float, float | None]) -> dict[str, float | None]:
    return {f"p{p * 100:g}": value for p, value in found.items()}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "effect": "ratio" if comparison.is_ratio else "difference",
        **_estimate(comparison.effect),
        "p": comparison.effect.p,
        "p_holm": comparison.adjusted_p,
        "verdict": comparison.verdict.value,
    }
