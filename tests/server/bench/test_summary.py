"""What attempts come to: figures that can be checked by hand or against numpy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from server.bench.attempt import Attempt
from server.bench.run import Record
from server.bench.summary import Objective, summarize


def answered(
    *,
    due_s: float = 100.0,
    first_s: float = 0.5,
    gaps_s: Iterable[float] = (0.1, 0.3),
    variant: str = "a",
    status: str = "ok",
    late_s: float = 0.0,
) -> Attempt:
    """A request whose tokens came one by one."""
    arrivals = [(due_s + first_s, 1)]
    for gap in gaps_s:
        arrivals.append((arrivals[-1][0] + gap, 1))
    queue_s = first_s / 2 if status == "ok" else None
    ended_s = arrivals[-1][0]
    return Attempt(variant, status, due_s, due_s + late_s, ended_s, tuple(arrivals), queue_s, 3)


def refused(seconds: float, variant: str = "", message: str = "full") -> Attempt:
    status = "resource_exhausted"
    return Attempt(variant, status, 100.0, 100.0, 100.0 + seconds, message=message)


def summed(attempts: Iterable[Attempt], seconds: float = 10.0, **bounds: float) -> dict[str, Any]:
    record = Record(tuple(attempts), 100.0, seconds, seconds)
    return summarize(record, Objective(**bounds))


def test_percentiles_are_numpy_s() -> None:
    """Of all samples, in seconds, and only where twenty lie beyond."""
    rng = np.random.default_rng(0)
    firsts = rng.exponential(1.0, 400)
    report = summed(answered(first_s=first) for first in firsts)
    spread = report["time_to_first_token_seconds"]
    assert spread["samples"] == 400
    assert spread["mean"] == pytest.approx(firsts.mean())
    assert spread["max"] == pytest.approx(firsts.max())
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95)):
        assert spread[name] == pytest.approx(np.quantile(firsts, share))
    assert spread["p99"] is None  # 2,000 would be needed
    assert report["inter_token_latency_seconds"]["samples"] == 800
    assert report["inter_token_latency_seconds"]["p90"] == pytest.approx(0.3)
    assert report["queue_seconds"]["p95"] == pytest.approx(np.quantile(firsts, 0.95) / 2)
    assert report["request_duration_seconds"]["max"] == pytest.approx(firsts.max() + 0.4)


def test_rates_are_over_the_whole_run() -> None:
    """Answered requests, all tokens that came, also those of who left."""
    report = summed([answered(), answered(status="left"), refused(0.01)], seconds=4.0)
    assert report["requests_per_second"] == 0.25
    assert report["tokens_per_second"] == 1.5
    assert report["statuses"] == {"left": 1, "ok": 1, "resource_exhausted": 1}
    assert report["requests"] == 3
    assert report["cached_tokens"] == 6
    assert report["messages"] == {"resource_exhausted": "full"}
    assert report["refusal_seconds"]["max"] == pytest.approx(0.01)
    assert report["refusal_seconds"]["samples"] == 1


def test_throughput_while_sending_leaves_out_the_end() -> None:
    """Tokens that came after the last request was sent are of an ever emptier server."""
    attempts = [answered(due_s=100.0), answered(due_s=101.9)]
    record = Record(tuple(attempts), 100.0, 2.0, 40.0)
    assert summarize(record, Objective())["sending_tokens_per_second"] == 3 / 2.0
    record = Record(tuple(attempts), 100.0, 0.01, 40.0)
    assert summarize(record, Objective())["sending_tokens_per_second"] is None


@pytest.mark.parametrize(
    ("bounds", "good"),
    [
        ({}, 3),
        ({"first_token_s": 0.5}, 2),
        ({"first_token_s": 0.49}, 0),
        ({"inter_token_s": 0.2}, 2),
        ({"inter_token_s": 0.19}, 0),
        ({"duration_s": 0.9}, 1),
        ({"first_token_s": 0.5, "inter_token_s": 0.2}, 1),
        ({"first_token_s": 9.0, "inter_token_s": 9.0, "duration_s": 9.0}, 3),
    ],
)
def test_goodput_counts_whom_every_bound_was_kept_for(bounds: dict[str, float], good: int) -> None:
    """Refusals are never good; who left is neither good nor bad."""
    attempts = [
        answered(),  # 0.5 s, then 0.2 s a token
        answered(first_s=0.8),
        answered(gaps_s=(0.6,)),
        answered(status="left"),
        refused(0.001),
    ]
    report = summed(attempts, **bounds)
    assert report["goodput_requests_per_second"] == pytest.approx(good / 10)
    assert report["goodput_share"] == pytest.approx(good / 4)


def test_one_token_has_no_gaps_to_be_judged_by() -> None:
    """It is good when it came in time."""
    assert Objective(inter_token_s=0.001).met(answered(gaps_s=()))


def test_each_variant_has_the_same_figures_of_its_own() -> None:
    """Requests that reached nobody are in none."""
    attempts = [answered(), answered(variant="b", first_s=2.0), refused(0.1, "b"), refused(0.1)]
    report = summed(attempts)
    assert set(report["variants"]) == {"a", "b"}
    a, b = report["variants"]["a"], report["variants"]["b"]
    assert a["statuses"] == {"ok": 1}
    assert b["statuses"] == {"ok": 1, "resource_exhausted": 1}
    assert b["time_to_first_token_seconds"]["mean"] == pytest.approx(2.0)
    assert report["requests"] == 4
    assert set(a) < set(report)


@pytest.mark.parametrize(("late", "told"), [(0, False), (2, False), (3, True)])
def test_a_generator_that_was_late_is_told(late: int, *, told: bool) -> None:
    """Where more than one request of a hundred was; their latencies include it."""
    attempts = [answered(late_s=0.2 if number < late else 0.01) for number in range(200)]
    report = summed(attempts)
    assert report["generator_was_late"] is told
    assert report["late_requests"] == late
    assert report["lateness_seconds"]["max"] == pytest.approx(0.2 if late else 0.01)


def test_nothing_measured_is_no_figure() -> None:
    """An interrupted run may hold nothing, and is still a report."""
    report = summed([], seconds=0.0)
    assert report["requests"] == report["requests_per_second"] == 0
    assert report["goodput_share"] == 0
    assert report["time_to_first_token_seconds"]["mean"] is None
    assert report["generator_was_late"] is False
