"""How all plots of a report look: palette, axes, error bars.

Knows nothing of what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.comparison.statistics import Estimate

# Okabe and Ito's palette, which people with any colour vision tell apart; the baseline is grey.
BASELINE = "#5f6b7a"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00")
LOSS, GAIN = "#d55e00", "#009e73"
LINE = "#9aa5b1"
_GRID = "#e3e7ec"
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2933"}


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour for each variant, the same in every plot; the first is the baseline."""
    series = {name: SERIES[index % len(SERIES)] for index, name in enumerate(names[1:])}
    return {names[0]: BASELINE} | series


def axis(**options: Any) -> dict[str, Any]:
    """Options of an axis."""
    return {"gridcolor": _GRID, "zerolinecolor": _GRID, "automargin": True, **options}


def error_bars(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Bars to the ends of intervals; none where an interval is missing."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if x.high is None else x.high - x.value for x in estimates],
        "arrayminus": [0 if x.low is None else x.value - x.low for x in estimates],
        "thickness": 1.5,
        "width": 4,
    }


def lay_out(figure: Any, *, height: int, legend: bool = False) -> None:
    """Size, fonts and background."""
    figure.update_layout(
        height=height,
        font=_FONT,
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.01, "x": 0},
        template="none",
    )
