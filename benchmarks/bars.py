"""What this project promises, and whether a run shows it.

Owns the bars. A bar against a peer counts only when both gave the same tokens. Knows nothing of how
figures were taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks import lineup
from benchmarks.samples import Measure, Samples, Spread

Verdict = Literal["pass", "FAIL", "not measured", "not comparable"]


@dataclass(frozen=True, slots=True)
class RatioBar:
    """A contender is at least this many times as fast as another."""

    title: str
    measure: Measure
    contender: str
    base: str
    at_least: float


@dataclass(frozen=True, slots=True)
class LimitBar:
    """A contender's figure is below a limit, in seconds."""

    title: str
    measure: Measure
    contender: str
    below_s: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A bar beside what was measured."""

    title: str
    wanted: str
    measured: str
    verdict: Verdict


BARS: tuple[RatioBar | LimitBar, ...] = (
    RatioBar(
        "float32, 1 stream, over optimum", Measure.ONE_STREAM, lineup.BASELINE, lineup.OPTIMUM, 1.6
    ),
    RatioBar(
        "float32, 8 streams, over optimum one after another",
        Measure.EIGHT_STREAMS,
        lineup.BASELINE,
        lineup.OPTIMUM,
        7.0,
    ),
    RatioBar(
        "int4 in blocks of 32, 1 stream, over optimum in float32",
        Measure.ONE_STREAM,
        lineup.INT4,
        lineup.OPTIMUM,
        4.0,
    ),
    RatioBar(
        "int4 in blocks of 128, 1 stream, over optimum in float32",
        Measure.ONE_STREAM,
        lineup.INT4_LARGE,
        lineup.OPTIMUM,
        4.0,
    ),
    *(
        RatioBar(f"gRPC over the engine in-process, {title}", measure, served, engine, at_least)
        for engine, served in lineup.ENGINES.items()
        for title, measure, at_least in (
            (f"{served}, 1 stream", Measure.DUEL_ONE, 0.95),
            (f"{served}, 8 streams", Measure.DUEL_EIGHT, 0.90),
        )
    ),
    LimitBar(
        "the engine's own work per step, 8 rows, greedy",
        Measure.OWN_GREEDY,
        lineup.ENGINE_BASELINE,
        0.5e-3,
    ),
    LimitBar(
        "the engine's own work per step, 8 rows, top_p 0.9",
        Measure.OWN_TOP_P,
        lineup.ENGINE_BASELINE,
        2e-3,
    ),
)


def judge(samples: Samples, agreement: Mapping[str, int], wanted: int) -> Iterator[Judged]:
    """Every bar beside the figures.

    Args:
        samples: All of a run.
        agreement: Of each float32 contender, how many leading tokens are as the reference's.
        wanted: How many they must be.
    """
    for bar in BARS:
        match bar:
            case RatioBar():
                yield _judge_ratio(bar, samples, agreement, wanted)
            case LimitBar():
                yield _judge_limit(bar, samples)


def _judge_ratio(
    bar: RatioBar, samples: Samples, agreement: Mapping[str, int], wanted: int
) -> Judged:
    ratio = samples.ratio(bar.measure, bar.contender, bar.base)
    measured = _shown(ratio, 1.0, "x")
    verdict: Verdict
    if ratio is None:
        verdict = "not measured"
    elif any(agreement.get(name, wanted) < wanted for name in (bar.contender, bar.base)):
        verdict = "not comparable"
    else:
        verdict = "pass" if ratio.median >= bar.at_least else "FAIL"
    return Judged(bar.title, f"at least {bar.at_least:g} x", measured, verdict)


def _judge_limit(bar: LimitBar, samples: Samples) -> Judged:
    figure = samples.spread(bar.contender, bar.measure)
    verdict: Verdict = "not measured"
    if figure is not None:
        verdict = "pass" if figure.median < bar.below_s else "FAIL"
    wanted = f"below {bar.below_s * 1e3:g} ms"
    return Judged(bar.title, wanted, _shown(figure, 1e3, "ms"), verdict)


def _shown(figure: Spread | None, scale: float, unit: str) -> str:
    if figure is None:
        return ""
    low, median, high = (x * scale for x in (figure.low, figure.median, figure.high))
    return f"{median:.2f} {unit} ({low:.2f} to {high:.2f})"
