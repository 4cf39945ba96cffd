"""The tables of a report, as text cells: one form of the report adds bars, the other tags.

Owns columns and how figures are written in them. Knows nothing of Markdown or HTML.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from server.comparison.figures import PERCENTILES, VariantFigures
from server.comparison.measures import (
    DECODE_1,
    DECODE_8,
    ENGINE,
    KL,
    LOAD,
    PERPLEXITY,
    PREFILL,
    RESIDENT,
    SpeedMeasure,
    duration,
    size,
    written,
)
from server.comparison.report import Report
from server.comparison.statistics import Estimate, needed
from server.comparison.waterfall import steps

ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table of text; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def overview(report: Report) -> tuple[Table, ...]:
    """Figures of all variants, by what they are about."""
    return _speed(report), _latency(report), _size(report), _quality(report)


def stages(variant: VariantFigures) -> Table:
    """What each stage of a variant added."""
    rows = [
        (
            step.label,
            step.form,
            duration(step.seconds),
            size(step.size_bytes),
            ABSENT if step.kl is None else f"{step.kl:+.5f}",
            ABSENT if step.kl_after is None else f"{step.kl_after:.5f}",
            "; ".join(step.notes),
        )
        for step in steps(variant.manifest.lineage)
    ]
    columns = ("stage", "form", "took", "size after", "KL added, nats", "KL after", "notes")
    return Table("Stages", columns, tuple(rows))


def chain_text(variant: VariantFigures) -> str:
    """``prune(amount=0.3) → quantize(bits=8)``; the original model for an empty chain."""
    parts = [
        f"{name}({', '.join(f'{key}={_value(value)}' for key, value in parameters.items())})"
        for stage in variant.manifest.chain
        for name, parameters in stage.items()
    ]
    return " → ".join(parts) or "the original model"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _speed(report: Report) -> Table:
    measures = (DECODE_1, DECODE_8, PREFILL, ENGINE)
    return Table(
        "Speed",
        ("variant", *(f"{measure.title}" for measure in measures)),
        _rows(report, measures),
        "Geometric means over the rounds with intervals of 95 %; * others used the machine in one "
        "of them.",
    )


def _latency(report: Report) -> Table:
    series = {
        "First token": [variant.first_token_s for variant in report.variants],
        "Between tokens": [variant.inter_token_s for variant in report.variants],
    }
    columns, cells, missing = ["variant"], [[v.name] for v in report.variants], []
    for title, found in series.items():
        for p in PERCENTILES:
            name = f"{title}, p{p * 100:g}"
            values = [percentiles.get(p) for percentiles in found]
            if all(value is None for value in values):
                missing.append(f"{name} ({needed(p):,})")
                continue
            columns.append(name)
            for row, value in zip(cells, values, strict=True):
                row.append(ABSENT if value is None else duration(value))
    note = "A percentile p needs 20 / (1 - p) samples, or is not shown."
    if missing:
        note += f" Too few for: {'; '.join(missing)}."
    return Table("Latency", tuple(columns), tuple(tuple(row) for row in cells), note)


def _size(report: Report) -> Table:
    measures = (RESIDENT, LOAD)
    rows = tuple(
        (name, size(variant.manifest.size_bytes), *cells, duration(variant.build_s))
        for variant, (name, *cells) in zip(report.variants, _rows(report, measures), strict=True)
    )
    columns = ("Size on disk", *(measure.title for measure in measures), "Build time")
    return Table("Size and time", ("variant", *columns), rows)


def _quality(report: Report) -> Table:
    rows = []
    for variant in report.variants:
        quality, divergence = variant.manifest.quality, variant.divergence
        cells = [ABSENT] * 5
        if quality is not None:
            cells = [
                _estimate(variant.quality.get(KL.key), "{:.5f}"),
                f"{quality.kl_p99:.4f}",
                _estimate(variant.quality.get("top1_agreement"), "{:.1%}"),
                _estimate(variant.quality.get(PERPLEXITY.key), "{:.2f}"),
                ABSENT if variant.identical is None else _estimate(variant.identical, "{:.0%}"),
            ]
        where = None if divergence is None else divergence.median_first
        cells.append(ABSENT if where is None else f"{where + 1:.0f}")
        cells.append("not kept" if variant.breaches else "kept")
        rows.append((variant.name, *cells))
    columns: tuple[str, ...] = (
        "variant",
        "KL mean, nats",
        "KL p99",
        "Agreement",
        "Perplexity",
        "Same greedy text",
        "First other token",
        "Budget",
    )
    if not any(variant.breaches for variant in report.variants):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    note = (
        f"Against the original model on {report.text}, from position 16 on; intervals of 95 % by "
        "bootstrap over documents. Greedy texts are compared with the baseline's; the first other "
        "token is the median."
    )
    return Table("Quality", columns, tuple(rows), note)


def _rows(report: Report, measures: Sequence[SpeedMeasure]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (variant.name, *(_cell(variant, measure) for measure in measures))
        for variant in report.variants
    )


def _cell(variant: VariantFigures, measure: SpeedMeasure) -> str:
    estimate = variant.speeds.get(measure.key)
    if estimate is None:
        return ABSENT
    shown = written(estimate.value, measure.unit)
    if estimate.low is not None and estimate.high is not None:
        low, high = (written(end, measure.unit) for end in (estimate.low, estimate.high))
        shown += f" [{_number(low)}, {_number(high)}]"
    is_disturbed = variant.disturbed and measure is not RESIDENT
    return shown + (" *" if is_disturbed else "")


def _number(shown: str) -> str:
    return shown.split(" ", 1)[0]


def _estimate(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return ABSENT
    shown = form.format(estimate.value)
    if estimate.low is not None and estimate.high is not None:
        shown += f" [{form.format(estimate.low)}, {form.format(estimate.high)}]"
    return shown
