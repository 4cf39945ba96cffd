"""What a person sees of a run: a bar that moves, tables, and warnings."""

from __future__ import annotations

import io
import time
from typing import Any, cast

import pytest
from rich.console import Console

from server.bench.arrivals import Plan
from server.bench.attempt import Attempt
from server.bench.progress import Progress
from server.bench.run import Record, Run
from server.bench.summary import Objective, summarize
from server.bench.tables import show, warnings


class Sent:
    """A run that has sent three requests."""

    sent = 3


def attempt(status: str = "ok", lateness_s: float = 0.0, variant: str = "a") -> Attempt:
    return Attempt(
        variant, status, 10.0, 10.0 + lateness_s, 11.5, ((10.5, 1), (11.5, 1)), 0.25, 0, "", 0.0
    )


def report(*attempts: Attempt, **changes: Any) -> dict[str, Any]:
    told = {"interrupted": False, "load": {"shared_prefix": 0, "seed": 7}}
    return told | summarize(Record(attempts, 10.0, 2.0, 2.0), Objective()) | changes


def test_the_bar_moves_while_nothing_ends() -> None:
    """A server that answers nobody is seen: time passes, requests are in flight."""
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=100)
    with Progress(Plan(1.0, 1, 1000.0, None), console) as progress:
        progress.begin(cast("Run", Sent()))
        first = progress.share
        deadline_s = time.monotonic() + 30
        while "3 sent, 0 answered, 3 in flight" not in terminal.getvalue():
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        assert first < progress.share < 1
        progress.ended(attempt())
        progress.ended(attempt("internal"))
        assert progress.said == "3 sent, 1 answered, 1 in flight, 1 otherwise"


@pytest.mark.parametrize(
    ("seconds", "requests", "share"), [(None, 4, 0.5), (1e-9, 4, 1.0), (1e9, 4, 0.5), (1e9, 1, 1.0)]
)
def test_what_ends_the_run_first_is_how_far_it_is(
    seconds: float | None, requests: int | None, share: float
) -> None:
    """Two of four requests, or the time; never beyond the end."""
    progress = Progress(Plan(None, 1, seconds, requests), Console(file=io.StringIO()))
    progress.begin(cast("Run", Sent()))
    progress.ended(attempt())
    progress.ended(attempt())
    assert progress.share == pytest.approx(share)


def test_nothing_is_drawn_where_nobody_watches() -> None:
    """A log gets no bar."""
    file = io.StringIO()
    with Progress(Plan(1.0, 1, 1.0, None), Console(file=file)) as progress:
        progress.begin(cast("Run", Sent()))
    assert not file.getvalue()


def test_tables_show_all_and_each_variant() -> None:
    """In milliseconds, in 80 columns, with what is too little to tell left out."""
    file = io.StringIO()
    attempts = [attempt() for _ in range(40)] + [
        attempt(variant="b"),
        attempt("unavailable", 0, ""),
    ]
    show(report(*attempts), Console(file=file, width=80))
    shown = file.getvalue()
    for line in (
        "all: 42 requests, 42.0 tokens/s, goodput 20.50/s (98%)",
        "a: 40 requests, 40.0 tokens/s, goodput 20.00/s (100%)",
        "b: 1 requests, 1.0 tokens/s",
        "20.50 answered requests/s over 2.0 s: 41 ok, 1 unavailable. Seed 7.",
        "percentiles of fewer samples than they need (p50 40, p90 200, p95 400, p99 2000)",
    ):
        assert line in shown
    rows = [line.split() for line in shown.splitlines() if "to first token" in line]
    assert rows[1][-6:] == ["500.0", "500.0", "-", "-", "-", "500.0"]
    assert rows[2][-6:] == ["500.0", "-", "-", "-", "-", "500.0"]


def test_refusals_are_told_with_the_server_s_words() -> None:
    """How long they took, and why."""
    refused = Attempt("", "resource_exhausted", 1.0, 1.0, 1.012, message="the queue is full.")
    file = io.StringIO()
    show(report(attempt(), refused), Console(file=file, width=80))
    assert "Refused for overload after, ms: mean 12.0, max 12.0." in file.getvalue()
    assert "resource_exhausted: the queue is full." in file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (report(attempt()), ""),
        (report(attempt(), interrupted=True), "was interrupted"),
        (report(attempt("internal")), "No request was answered."),
        (report(attempt(lateness_s=0.2)), "sent more than 50 ms after they were due, at most 200"),
        (report(attempt(), cached_tokens=9), "had computed 9 tokens of these prompts before"),
        (report(attempt(), cached_tokens=9, load={"shared_prefix": 9}), ""),
    ],
)
def test_what_makes_figures_say_less_is_told(content: dict[str, Any], said: str) -> None:
    """One sentence each, and none without a reason."""
    told = list(warnings(content))
    assert len(told) == bool(said)
    assert said in "".join(told)
