"""Tables and plots of a run against peers.

Owns which figures stand where. Knows nothing of how they were taken.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peer_lineup import NAMES, QUALITY_FACTOR, RECIPES, label
from benchmarks.peer_results import PeerResults
from benchmarks.peer_turns import DECODE, MEMORY, PREFILL
from benchmarks.poisson import BETWEEN_S, NEW_TOKENS, PROMPT_TOKENS, TTFT_S, LoadPoint
from benchmarks.report import Table, document, versions_of, where
from benchmarks.samples import Measure, Spread
from server.comparison.load import QUIET_CORES

_MIB = 1 << 20
_TITLES: dict[Measure, str] = {
    **{measure: f"prefill {length}" for length, measure in PREFILL.items()},
    **{measure: f"decode, {_n} streams" for _n, measure in DECODE.items()},
}
BARS = {
    Measure.PREFILL_256: 1.0,
    Measure.DECODE_1: 1.2,
    Measure.DECODE_8: 1.0,
    Measure.DECODE_16: 1.0,
}
"""The best of our rows that are as good as a rung over that rung, at least, whichever rung."""

BANDWIDTH_SHARE = 0.75
"""Of the memory's bandwidth, at least, that decoding one stream uses."""
FORMS_FACTOR, RESIDENT_BYTES = 1.3, 250 << 20
"""Memory of a server, at most: so many times its weights and so much besides, and the cache."""
WARM_S = 2.0


def tables(results: PeerResults) -> Iterator[Table]:
    """All tables of a run."""
    yield Table(
        f"{results.shape} ({results.parameters / 1e6:.0f}M parameters, random weights), tokens/s, "
        f"{results.settings.threads} threads",
        (
            "",
            "KL to float32, nats",
            *_TITLES.values(),
            "peak memory, MiB",
            "cold start, s",
            "warm start, s",
        ),
        tuple(_rows(results)),
    )
    yield Table(
        f"Our rows over the hardest peer whose KL they keep to ({QUALITY_FACTOR:g}x)",
        ("", *_TITLES.values()),
        tuple(
            (label(ours), *(_against(results.best(measure, ours)) for measure in _TITLES))
            for ours in RECIPES
        ),
    )
    yield Table(
        "Bars: the rung that is hardest to beat, and the best row of ours that is as good",
        ("", "row", "peer", "at least", "measured (least to most)", ""),
        tuple(_bars(results)),
    )
    yield Table(
        "Our rows by themselves: limits that memory and a start are to keep",
        ("", "what", "limit", "measured", ""),
        tuple(_limits(results)),
    )
    yield Table(
        f"Poisson load, {PROMPT_TOKENS} tokens in, {NEW_TOKENS} out: milliseconds; goodput counts "
        f"first tokens within {TTFT_S:g} s and 95 % of the gaps within {BETWEEN_S * 1e3:.0f} ms",
        (
            "",
            "load",
            "requests/s",
            "TTFT p50",
            "TTFT p95",
            "between p50",
            "between p95",
            "goodput, requests/s",
        ),
        tuple(_loads(results)),
    )


def notes(results: PeerResults) -> Iterator[str]:
    """What must be said beside the tables."""
    yield where(results.created, results.machine)
    for peer, versions in results.versions.items():
        yield f"{label(peer)}: {versions_of(versions)}."
    yield (
        f"Medians of {results.settings.rounds} rounds taken in turns; ratios are medians of each "
        "round's ratio. Where requests cannot come and go, several streams are one batch."
    )
    for name, capacity in results.capacities.items():
        yield f"Capacity of {label(name)}: {capacity:.2f} requests/s."
    for rung in results.unmatched():
        yield f"NOT COMPARED: no row of ours is as good as {label(rung)}."
    for name, why in results.failures.items():
        yield f"FAILED: {label(name)} was left out: {why.splitlines()[0]}"
    disturbed = sum(sample.others_cores > QUIET_CORES for sample in results.samples)
    if disturbed:
        yield (
            f"DISTURBED: {disturbed} of {len([*results.samples])} figures were taken while others "
            f"used more than {QUIET_CORES:g} cores."
        )


def markdown(results: PeerResults) -> str:
    """Tables and notes."""
    return document(tables(results), notes(results))


def write_plots(results: PeerResults, path: Path) -> None:
    """One page with a group of bars for each figure; it needs no network."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for name in NAMES:
        spreads = {title: results.samples.spread(name, each) for each, title in _TITLES.items()}
        measured = {title: spread for title, spread in spreads.items() if spread is not None}
        if measured:
            figure.add_bar(
                name=label(name),
                x=[*measured],
                y=[spread.median for spread in measured.values()],
                error_y={
                    "array": [spread.high - spread.median for spread in measured.values()],
                    "arrayminus": [spread.median - spread.low for spread in measured.values()],
                },
            )
    figure.update_layout(title=f"{results.shape}: tokens/s", barmode="group", yaxis_type="log")
    figure.write_html(path, include_plotlyjs=True)


def _rows(results: PeerResults) -> Iterator[tuple[str, ...]]:
    samples = results.samples

    def shown(name: str, measure: Measure, form: str, scale: float = 1.0) -> str:
        spread = samples.spread(name, measure)
        return "" if spread is None else form.format(spread.median * scale)

    for name in NAMES:
        if samples.spread(name, Measure.DECODE_1) is None:
            continue
        kl = results.quality.get(name)
        yield (
            label(name),
            "" if kl is None else f"{kl:.5f}",
            *(shown(name, measure, "{:.0f}") for measure in PREFILL.values()),
            *(shown(name, measure, "{:.1f}") for measure in DECODE.values()),
            shown(name, Measure.PEAK, "{:.0f}", 1 / _MIB),
            shown(name, Measure.COLD_START, "{:.1f}"),
            shown(name, Measure.WARM_START, "{:.1f}"),
        )


def _against(best: tuple[str, Spread] | None) -> str:
    if best is None:
        return ""
    rung, ratio = best
    return f"{ratio.median:.2f} ({label(rung)})"


def _bars(results: PeerResults) -> Iterator[tuple[str, ...]]:
    for measure, at_least in BARS.items():
        best = results.hardest(measure)
        if best is None:
            yield _TITLES[measure], "", "", f"{at_least:g}", "", "not measured"
            continue
        ours, rung, ratio = best
        yield (
            _TITLES[measure],
            label(ours),
            label(rung),
            f"{at_least:g}",
            f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
            _verdict(ratio.median >= at_least),
        )


def _limits(results: PeerResults) -> Iterator[tuple[str, ...]]:
    """Bandwidth, memory and warm start of every row.

    Memory is what is resident at the end of a turn, whose last streams are still in the cache.
    """
    settings = results.settings
    cached = max(DECODE) * (settings.prompt_tokens + settings.new_tokens)
    samples = results.samples
    read = samples.spread(MEMORY, Measure.BANDWIDTH)
    for name, weights in results.weights.items():
        pace = samples.ratio_of(Measure.DECODE_1, name, Measure.BANDWIDTH, MEMORY)
        if pace is not None and read is not None:
            share = pace.median * weights.bytes_per_token
            token = f"{weights.bytes_per_token / 1e6:.0f} MB a token"
            yield (
                label(name),
                f"decode, 1 stream: share of {read.median / 1e9:.1f} GB/s, at {token}",
                f"at least {BANDWIDTH_SHARE:.0%}",
                f"{share:.0%}",
                _verdict(share >= BANDWIDTH_SHARE),
            )
        resident = samples.spread(name, Measure.RESIDENT)
        if resident is not None:
            cache = cached * weights.kv_bytes_per_token
            most = FORMS_FACTOR * weights.loaded_bytes + cache + RESIDENT_BYTES
            forms = f"{FORMS_FACTOR:g} x {weights.loaded_bytes / _MIB:.0f} of weights"
            rest = f"{cache / _MIB:.0f} of cache + {RESIDENT_BYTES / _MIB:.0f}"
            yield (
                label(name),
                f"resident memory, MiB: {forms} + {rest}",
                f"{most / _MIB:.0f}",
                f"{resident.median / _MIB:.0f}",
                _verdict(resident.median <= most),
            )
        warm = samples.spread(name, Measure.WARM_START)
        if warm is not None:
            yield (
                label(name),
                "warm start to first token, s",
                f"{WARM_S:g}",
                f"{warm.median:.2f}",
                _verdict(warm.median <= WARM_S),
            )


def _verdict(passes: bool) -> str:  # noqa: FBT001 - its only argument
    return "pass" if passes else "FAIL"


def _loads(results: PeerResults) -> Iterator[tuple[str, ...]]:
    grouped: dict[tuple[str, str], list[LoadPoint]] = {}
    for load in results.loads:
        grouped.setdefault((load.share, load.contender), []).append(load)
    for (share, name), points in sorted(grouped.items()):
        times = ("first_p50_s", "first_p95_s", "between_p50_s", "between_p95_s")
        yield (
            label(name),
            share,
            f"{points[0].rate:.2f}",
            *(
                f"{1e3 * statistics.median(getattr(one, time) for one in points):.0f}"
                for time in times
            ),
            f"{statistics.median(one.goodput for one in points):.2f}",
        )
