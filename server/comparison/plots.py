"""The plots of a report, as plotly figures.

Owns what is drawn against what. Whatever is drawn is in a table as well. Knows nothing of the page
around them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from server.comparison.figures import Comparison, VariantFigures
from server.comparison.measures import DECODE_1, DECODE_8, KL, SpeedMeasure, factor, size
from server.comparison.plot_style import (
    BASELINE,
    GAIN,
    LINE,
    LOSS,
    SERIES,
    axis,
    colours,
    error_bars,
    lay_out,
)
from server.comparison.waterfall import Step, steps

_LEAST_MARK, _LARGEST_MARK = 12.0, 46.0  # diameters in pixels
_PLACES = ("top center", "bottom center", "middle right", "middle left")  # of names, in turn
_FLOOR_KL = 1e-5  # nats; what is below is drawn here, on an axis that has no 0
_FORMS = {"torch": "#9fc5e8", "onnx": SERIES[0]}
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)


def pareto(variants: Sequence[VariantFigures]) -> Any | None:
    """Quality lost against decoding speed, the size on disk as the mark's area."""
    from plotly.subplots import make_subplots

    drawn = [v for v in variants if v.rounds and KL.key in v.quality]
    if not drawn:
        return None
    drawn.sort(key=lambda variant: variant.manifest.size_bytes, reverse=True)  # small ones on top
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=("1 stream", "8 streams"),
        shared_yaxes=True,
        horizontal_spacing=0.05,
    )
    colour = colours([variant.name for variant in variants])
    largest = max(variant.manifest.size_bytes for variant in drawn)
    for column, measure in enumerate((DECODE_1, DECODE_8), start=1):
        figure.add_trace(_front_line(front(drawn, measure), measure), row=1, col=column)
        for place, variant in enumerate(drawn):
            share = (variant.manifest.size_bytes / largest) ** 0.5
            mark = _mark(variant, measure)
            mark.update(
                textposition=_PLACES[place % len(_PLACES)],
                marker_color=colour[variant.name],
                marker_size=max(_LARGEST_MARK * share, _LEAST_MARK),
            )
            figure.add_trace(mark, row=1, col=column)
        fastest = max(variant.speeds[measure.key].value for variant in drawn)
        figure.update_xaxes(range=[0, fastest * 1.3], col=column)
    least = min(math.log10(_kl(variant)) for variant in drawn)
    most = max(math.log10(_kl(variant)) for variant in drawn)
    figure.update_xaxes(**axis(title_text="tokens/s"))
    figure.update_yaxes(
        **axis(type="log", dtick=1, exponentformat="power", range=[least - 0.9, most + 0.8])
    )
    figure.update_yaxes(title_text="KL from the original, nats", col=1)
    lay_out(figure, height=460)
    return figure


def front(variants: Sequence[VariantFigures], measure: SpeedMeasure) -> list[VariantFigures]:
    """Those that no other beats in both speed and quality, the fastest last."""
    found: list[VariantFigures] = []
    for variant in sorted(variants, key=lambda v: v.speeds[measure.key].value, reverse=True):
        if not found or _kl(variant) < _kl(found[-1]):
            found.append(variant)
    return found[::-1]


def _front_line(variants: Sequence[VariantFigures], measure: SpeedMeasure) -> Any:
    from plotly import graph_objects as go

    return go.Scatter(
        x=[variant.speeds[measure.key].value for variant in variants],
        y=[_kl(variant) for variant in variants],
        mode="lines",
        line={"color": LINE, "dash": "dot", "width": 1.5},
        hoverinfo="skip",
        name="front",
    )


def _mark(variant: VariantFigures, measure: SpeedMeasure) -> Any:
    from plotly import graph_objects as go

    name = html.escape(variant.name)
    speed, kl = variant.speeds[measure.key], variant.quality[KL.key]
    told = f"{speed.value:.1f} tokens/s<br>KL {kl.value:.5f} nats"
    return go.Scatter(
        x=[speed.value],
        y=[_kl(variant)],
        error_x=error_bars([speed]),
        error_y=error_bars([kl]) if kl.value > _FLOOR_KL else None,
        mode="markers+text",
        text=[f"<b>{name}</b>"],
        marker={"opacity": 0.8, "line": {"color": "white", "width": 1.5}},
        name=name,
        hovertemplate=f"<b>{name}</b><br>{told}<br>{size(variant.manifest.size_bytes)}"
        "<extra></extra>",
    )


def effects(variants: Sequence[VariantFigures]) -> Any | None:
    """Each variant's ratio to the baseline with its interval, one row per measure."""
    from plotly import graph_objects as go

    ratios = {v.name: [c for c in v.comparisons if c.is_ratio] for v in variants[1:]}
    rows = list(dict.fromkeys(c.measure for several in ratios.values() for c in several))
    if not rows:
        return None
    colour = colours([variant.name for variant in variants])
    figure = go.Figure()
    for index, (name, several) in enumerate(ratios.items()):
        shift = (index - (len(ratios) - 1) / 2) * 0.75 / len(ratios)
        figure.add_trace(
            go.Scatter(
                x=[c.effect.value for c in several],
                y=[rows.index(c.measure) + shift for c in several],
                error_x=error_bars([c.effect for c in several]),
                mode="markers",
                marker={"size": 9, "color": colour[name]},
                name=html.escape(name),
                text=[
                    f"{html.escape(name)}: {factor(c.effect.value)} the {c.measure.phrase}"
                    for c in several
                ],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    figure.add_vline(x=1, line={"color": BASELINE, "width": 1.5})
    figure.update_xaxes(
        **axis(
            title_text="times the baseline",
            type="log",
            range=_ratio_range([c for several in ratios.values() for c in several]),
            tickmode="array",
            tickvals=_RATIOS,
            ticktext=[f"{ratio:g}x" for ratio in _RATIOS],
            tickangle=0,
        )
    )
    arrows = {"more": "↑", "less": "↓"}
    figure.update_yaxes(
        **axis(
            tickmode="array",
            tickvals=list(range(len(rows))),
            ticktext=[f"{measure.title} {arrows[measure.better]}" for measure in rows],
            range=[len(rows) - 0.4, -0.6],
        )
    )
    lay_out(figure, height=140 + 48 * len(rows), legend=True)
    return figure


def _ratio_range(comparisons: Sequence[Comparison]) -> list[float]:
    """Room for all ratios, and for most of each interval; powers of ten."""
    logs = [math.log10(c.effect.value) for c in comparisons]
    return [min(*logs, -0.1) - 0.2, max(*logs, 0.1) + 0.2]


def waterfall(variant: VariantFigures) -> Any | None:
    """What each stage added to the KL divergence, and the size after it."""
    from plotly.subplots import make_subplots

    found = steps(variant.manifest.lineage)
    measured = [step for step in found if step.kl is not None]
    if len(found) < 2 or not measured:
        return None
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=("KL added by a stage, nats", "Size after a stage, MB"),
        horizontal_spacing=0.09,
    )
    figure.add_trace(_losses(measured), row=1, col=1)
    figure.add_trace(_sizes(found), row=1, col=2)
    figure.update_xaxes(**axis())
    figure.update_yaxes(**axis(exponentformat="none"))
    lay_out(figure, height=320)
    return figure


def _losses(measured: Sequence[Step]) -> Any:
    from plotly import graph_objects as go

    return go.Waterfall(
        x=[*_labels(measured), "artifact"],
        y=[*(step.kl for step in measured), 0],
        measure=[*["relative"] * len(measured), "total"],
        text=[*(f"{step.kl:+.4f}" for step in measured), f"{measured[-1].kl_after:.4f}"],
        textposition="outside",
        increasing={"marker": {"color": LOSS}},
        decreasing={"marker": {"color": GAIN}},
        totals={"marker": {"color": BASELINE}},
        connector={"line": {"color": LINE, "width": 1}},
        cliponaxis=False,
    )


def _sizes(found: Sequence[Step]) -> Any:
    from plotly import graph_objects as go

    megabytes = [step.size_bytes / 1e6 for step in found]
    return go.Bar(
        x=_labels(found),
        y=megabytes,
        text=[f"{value:.1f}" for value in megabytes],
        textposition="outside",
        marker={"color": [_FORMS[step.form] for step in found]},
        cliponaxis=False,
    )


def _labels(found: Sequence[Step]) -> list[str]:
    """Of stages; one that comes twice is numbered, or both would share a bar."""
    labels = [html.escape(step.label) for step in found]
    return [
        f"{label} ({labels[: index + 1].count(label)})" if labels.count(label) > 1 else label
        for index, label in enumerate(labels)
    ]


def _kl(variant: VariantFigures) -> float:
    return max(variant.quality[KL.key].value, _FLOOR_KL)
