"""The plots of a report, as plotly figures.

Owns what is drawn against what, colours and marks. Whatever is drawn is in a table as well. Knows
nothing of the page around them.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from server.comparison.figures import VariantFigures
from server.comparison.measures import DECODE_1, DECODE_8, KL, Measure, SpeedMeasure, factor, size
from server.comparison.statistics import Estimate
from server.comparison.waterfall import steps

# Okabe and Ito's palette, which people with any colour vision tell apart; the baseline is grey.
_BASELINE = "#5f6b7a"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00")
_LOSS, _GAIN, _TOTAL = "#d55e00", "#009e73", "#5f6b7a"
_GRID = "#e3e7ec"
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2933"}
_LEAST_MARK, _LARGEST_MARK = 12.0, 46.0  # diameters in pixels
_FLOOR_KL = 1e-5  # nats; what is below is drawn here, on an axis that has no 0


def colours(variants: Sequence[VariantFigures]) -> dict[str, str]:
    """One colour for each variant, the same in every plot."""
    others = variants[1:]
    found = {variants[0].name: _BASELINE}
    return found | {
        variant.name: _COLOURS[index % len(_COLOURS)] for index, variant in enumerate(others)
    }


def pareto(variants: Sequence[VariantFigures]) -> Any | None:
    """Quality lost against decoding speed, the size on disk as the mark's area."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    drawn = [v for v in variants if v.rounds and KL.key in v.quality]
    if not drawn:
        return None
    colour = colours(variants)
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=("1 stream", "8 streams"),
        shared_yaxes=True,
        horizontal_spacing=0.05,
    )
    largest = max(variant.manifest.size_bytes for variant in drawn)
    for column, measure in enumerate((DECODE_1, DECODE_8), start=1):
        front = _front(drawn, measure)
        figure.add_trace(
            go.Scatter(
                x=[variant.speeds[measure.key].value for variant in front],
                y=[_kl(variant) for variant in front],
                mode="lines",
                line={"color": "#9aa5b1", "dash": "dot", "width": 1.5},
                hoverinfo="skip",
                showlegend=False,
                name="front",
            ),
            row=1,
            col=column,
        )
        for variant in drawn:
            speed, kl = variant.speeds[measure.key], variant.quality[KL.key]
            share = (variant.manifest.size_bytes / largest) ** 0.5
            figure.add_trace(
                go.Scatter(
                    x=[speed.value],
                    y=[_kl(variant)],
                    error_x=_reach(speed),
                    error_y=_reach(kl) if kl.value > _FLOOR_KL else None,
                    mode="markers+text",
                    text=[f"<b>{html.escape(variant.name)}</b>"],
                    textposition="top center",
                    marker={
                        "size": max(_LARGEST_MARK * share, _LEAST_MARK),
                        "color": colour[variant.name],
                        "opacity": 0.8,
                        "line": {"color": "white", "width": 1.5},
                    },
                    name=html.escape(variant.name),
                    hovertemplate=(
                        f"<b>{html.escape(variant.name)}</b><br>%{{x:.1f}} tokens/s<br>"
                        f"KL {kl.value:.5f} nats<br>{size(variant.manifest.size_bytes)}"
                        "<extra></extra>"
                    ),
                    showlegend=False,
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="tokens/s (more is better)", rangemode="tozero", **_axis())
    figure.update_yaxes(type="log", **_axis(), exponentformat="power")
    figure.update_yaxes(title_text="KL from the original, nats (less is better)", col=1)
    _lay_out(figure, height=460)
    return figure


def effects(variants: Sequence[VariantFigures]) -> Any | None:
    """Each variant's ratio to the baseline with its interval, one row per measure."""
    from plotly import graph_objects as go

    colour = colours(variants)
    figure = go.Figure()
    titles: list[str] = []
    for index, variant in enumerate(variants[1:]):
        ratios = [c for c in variant.comparisons if c.is_ratio]
        if not ratios:
            continue
        titles = titles or [_directed(c.measure) for c in ratios]
        shift = (index - (len(variants) - 2) / 2) * 0.8 / max(len(variants) - 1, 1)
        figure.add_trace(
            go.Scatter(
                x=[c.effect.value for c in ratios],
                y=[row + shift for row in range(len(ratios))],
                error_x=_reaches([c.effect for c in ratios]),
                mode="markers",
                marker={"size": 9, "color": colour[variant.name]},
                name=html.escape(variant.name),
                text=[
                    f"{html.escape(variant.name)}: {factor(c.effect.value)} the {c.measure.phrase}"
                    for c in ratios
                ],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    if not titles:
        return None
    figure.add_vline(x=1, line={"color": _BASELINE, "width": 1.5})
    figure.update_xaxes(
        title_text="times the baseline",
        type="log",
        **_axis(),
        tickmode="array",
        tickvals=_RATIOS,
        ticktext=[f"{ratio:g}x" for ratio in _RATIOS],
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(titles))),
        ticktext=titles,
        range=[len(titles) - 0.4, -0.6],
        **_axis(),
    )
    _lay_out(figure, height=130 + 46 * len(titles), legend=True)
    return figure


_RATIOS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10)


def waterfall(variant: VariantFigures) -> Any | None:
    """What each stage added to the KL divergence, and the size after it."""
    from plotly import graph_objects as go
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
    figure.add_trace(
        go.Waterfall(
            x=[html.escape(step.label) for step in measured] + ["artifact"],
            y=[step.kl for step in measured] + [0],
            measure=["relative"] * len(measured) + ["total"],
            text=[f"{step.kl:+.4f}" for step in measured] + [f"{measured[-1].kl_after:.4f}"],
            textposition="outside",
            increasing={"marker": {"color": _LOSS}},
            decreasing={"marker": {"color": _GAIN}},
            totals={"marker": {"color": _TOTAL}},
            connector={"line": {"color": "#9aa5b1", "width": 1}},
            cliponaxis=False,
        ),
        row=1,
        col=1,
    )
    megabytes = [step.size_bytes / 1e6 for step in found]
    figure.add_trace(
        go.Bar(
            x=[html.escape(step.label) for step in found],
            y=megabytes,
            text=[f"{value:.1f}" for value in megabytes],
            textposition="outside",
            marker={"color": _COLOURS[0]},
            cliponaxis=False,
        ),
        row=1,
        col=2,
    )
    figure.update_xaxes(**_axis())
    figure.update_yaxes(**_axis())
    _lay_out(figure, height=320)
    return figure


def _front(variants: Sequence[VariantFigures], measure: SpeedMeasure) -> list[VariantFigures]:
    """Those that no other beats in both speed and quality, the fastest last."""
    front: list[VariantFigures] = []
    ordered = sorted(variants, key=lambda v: v.speeds[measure.key].value, reverse=True)
    for variant in ordered:
        if not front or _kl(variant) < _kl(front[-1]):
            front.append(variant)
    return front[::-1]


def _kl(variant: VariantFigures) -> float:
    return max(variant.quality[KL.key].value, _FLOOR_KL)


def _directed(measure: Measure) -> str:
    return f"{measure.title} ({measure.better} is better)"


def _reach(estimate: Estimate) -> dict[str, Any]:
    return _reaches([estimate])


def _reaches(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Error bars to the ends of intervals."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if x.high is None else x.high - x.value for x in estimates],
        "arrayminus": [0 if x.low is None else x.value - x.low for x in estimates],
        "thickness": 1.5,
        "width": 4,
    }


def _axis() -> dict[str, Any]:
    return {"gridcolor": _GRID, "zerolinecolor": _GRID, "automargin": True}


def _lay_out(figure: Any, *, height: int, legend: bool = False) -> None:
    figure.update_layout(
        height=height,
        font=_FONT,
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 60, "r": 20, "t": 50, "b": 55},
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.01, "x": 0},
        template="none",
    )
