"""The figures of a run for people: a table by variant, and what must be said beside it.

Knows nothing of how figures come about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from server.bench.attempt import OK
from server.bench.summary import LATE_S, PERCENTILES
from server.comparison.statistics import needed

_LATENCIES = (
    ("to first token", "time_to_first_token_seconds"),
    ("between tokens", "inter_token_latency_seconds"),
    ("whole request", "request_duration_seconds"),
    ("in the queue", "queue_seconds"),
)
_PERCENTILES = {f"p{share * 100:g}": needed(share) for share in PERCENTILES}
_CELL = 8
_SPREAD = ("mean", *_PERCENTILES, "max")


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the figures."""
    for name, figures in (("all", report), *report["variants"].items()):
        _say(console, _title(name, figures))
        table = Table(box=None)
        table.add_column("ms", width=max(len(label) for label, _ in _LATENCIES))
        for column in _SPREAD:
            table.add_column(column, justify="right", min_width=_CELL, no_wrap=True)
        for label, key in _LATENCIES:
            table.add_row(label, *_cells(figures[key]))
        console.print(table)
    for line in lines(report):
        _say(console, line)


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What stands below the tables."""
    statuses = ", ".join(f"{count} {name}" for name, count in report["statuses"].items())
    yield (
        f"{report['requests_per_second']:.2f} answered requests/s over {report['seconds']:.1f} s: "
        f"{statuses or 'nothing was sent'}. Seed {report['load']['seed']}."
    )
    if report["refusal_seconds"]["samples"]:
        refusals = ", ".join(
            f"{name} {cell}"
            for name, cell in zip(_SPREAD, _cells(report["refusal_seconds"]), strict=True)
            if cell != "-"
        )
        yield f"Refused for overload after, ms: {refusals}."
    for status, message in report["messages"].items():
        yield f"{status}: {message}"
    if any(
        figures[key][name] is None
        for figures in (report, *report["variants"].values())
        for _, key in _LATENCIES
        for name in _PERCENTILES
    ):
        wanted = ", ".join(f"{name} {count}" for name, count in _PERCENTILES.items())
        yield f"Left out: percentiles of fewer samples than they need ({wanted})."


def warnings(report: Mapping[str, Any]) -> Iterator[str]:
    """What makes figures say less than they seem to."""
    if report["interrupted"]:
        yield "The run was interrupted; the figures are of what had ended until then."
    if not report["statuses"].get(OK):
        yield "No request was answered."
    if report["generator_was_late"]:
        yield (
            f"The generator itself was late: {report['late_requests']} of {report['requests']} "
            f"requests were sent more than {LATE_S * 1000:g} ms after they were due, at most "
            f"{report['lateness_seconds']['max'] * 1000:.0f} ms, which their latencies include. "
            "Lower --rate, or share it between processes."
        )
    if report["cached_tokens"] and not report["load"]["shared_prefix"]:
        yield (
            f"The server had computed {report['cached_tokens']} tokens of these prompts before, as "
            "after an earlier run with the same --seed; take another one."
        )


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _title(name: str, figures: Mapping[str, Any]) -> str:
    return (
        f"{name}: {figures['requests']} requests, {figures['tokens_per_second']:.1f} tokens/s, "
        f"goodput {figures['goodput_requests_per_second']:.2f}/s ({figures['goodput_share']:.0%})"
    )


def _cells(spread: Mapping[str, Any]) -> Sequence[str]:
    return ["-" if spread[name] is None else f"{spread[name] * 1000:.1f}" for name in _SPREAD]
