"""The bench of overload: its search and its bars, and once the whole of it with tiny numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import overload
from benchmarks.overload import Run
from benchmarks.sustainable import Probe, find, judged, probe_of
from server.bench.attempt import Attempt
from server.bench.run import Record
from server.config.fields import Config

LIGHT = Probe(9.0, 1080, {"ok": 1080}, 9.0, 900.0, 0.2, 0.4, None)
HEAVY = Probe(20.0, 2400, {"ok": 1200, "resource_exhausted": 1200}, 10.0, 1000.0, None, 25.0, 0.004)
PROBES = (replace(LIGHT, rate=8.0), replace(LIGHT, rate=16.0, tokens_per_second=1010.0))


def met(light: Probe = LIGHT, heavy: Probe = HEAVY, queue_s: float = 30.0) -> list[bool]:
    return [verdict for _, verdict in judged(PROBES, light, heavy, queue_s)]


def test_a_server_that_bears_it_meets_every_bar() -> None:
    """Twice the load, with a queue of 30 s."""
    assert met() == [True, True, True, True]


@pytest.mark.parametrize(
    ("heavy", "missed"),
    [
        ({"first_token_p95_s": 30.41}, 0),
        ({"first_token_p95_s": None}, 0),
        ({"tokens_per_second": 908.0}, 1),
        ({"tokens_per_second": 0.0}, 1),
        ({"refusal_p99_s": 0.101}, 2),
        ({"refusal_p99_s": None}, 2),
        ({"statuses": {"ok": 1200, "resource_exhausted": 1199}}, 3),
        ({"statuses": {"ok": 1200, "resource_exhausted": 1201}}, 3),
        ({"statuses": {"ok": 1200, "resource_exhausted": 1199, "no_finish": 1}}, 3),
        ({"statuses": {"ok": 1200, "resource_exhausted": 1199, "interrupted": 1}}, 3),
    ],
)
def test_each_planted_miss_fails_its_bar(heavy: dict[str, Any], missed: int) -> None:
    """And no other; a missing figure meets none."""
    verdicts = met(heavy=replace(HEAVY, **heavy))
    assert verdicts == [number != missed for number in range(4)]


def test_one_request_too_many_and_one_lost_do_not_cancel_out() -> None:
    """Each run is counted by itself."""
    light = replace(LIGHT, statuses={"ok": 1081})
    heavy = replace(HEAVY, statuses={"ok": 1199, "resource_exhausted": 1200})
    assert met(light, heavy) == [True, True, True, False]


def test_the_bound_is_the_queue_that_was_configured() -> None:
    """A shorter one is missed by the same figures."""
    assert met(queue_s=24.6)[0]
    assert not met(queue_s=24.5)[0]


def curve(knee: float, asked: list[float]) -> Callable[[float], Probe]:
    """A server whose queue grows without end beyond a rate."""

    def probe(rate: float) -> Probe:
        asked.append(rate)
        wait_s = 0.1 if rate <= knee else None
        return replace(LIGHT, rate=rate, queue_p95_s=wait_s)

    return probe


@pytest.mark.parametrize("knee", [0.3, 1.0, 1.9, 2.0, 7.3, 40.0])
def test_the_highest_sustained_rate_is_found(knee: float) -> None:
    """From below, within the precision, in few probes, each kept."""
    asked: list[float] = []
    found, probes = find(curve(knee, asked), 2.0, precision=0.05, lowest=0.01, highest=512.0)
    assert found is not None
    assert found <= knee <= found * 1.05 * (1 + 1e-9)
    assert [one.rate for one in probes] == asked
    assert len(asked) == len(set(asked)) <= 12


def test_the_search_ends_where_there_is_nothing_to_find() -> None:
    """A server that bears everything, and one that bears nothing."""
    asked: list[float] = []
    assert find(curve(math.inf, asked), 2.0, precision=0.05, lowest=1, highest=20)[0] == 16.0
    asked.clear()
    assert find(curve(0.0, asked), 2.0, precision=0.05, lowest=0.5, highest=20)[0] is None
    assert asked == [2.0, 1.0, 0.5]
    assert Run(None, ()).bars() == [("no rate was sustained", False)]


def attempt(status: str = "ok", queue_s: float | None = 0.1, ended_s: float = 3.0) -> Attempt:
    arrivals = ((2.0, 1), (3.0, 1)) if status == "ok" else ()
    return Attempt("a", status, 1.0, 1.0, ended_s, arrivals, queue_s)


@pytest.mark.parametrize(
    ("slow", "refused", "sustained"), [(0, 0, True), (4, 0, True), (6, 0, False), (0, 6, False)]
)
def test_a_refused_request_waits_for_ever(slow: int, refused: int, *, sustained: bool) -> None:
    """Or a server that refuses everybody would sustain every rate."""
    attempts = [attempt()] * (100 - slow - refused) + [attempt(queue_s=1.5)] * slow
    attempts += [attempt("resource_exhausted", None, 1.004)] * refused
    one = probe_of(5.0, 100, Record(tuple(attempts), 1.0, 2.0, 2.0), 0.0)
    assert one.is_sustained is sustained
    assert one.refused == refused
    assert one.first_token_p95_s == 1.0
    assert one.refusal_p99_s == (pytest.approx(0.004) if refused else None)


def test_the_table_and_the_notes_tell_every_probe() -> None:
    """Those that were disturbed, or that the generator was too slow for, are named."""
    light = replace(LIGHT, others_cores=0.5)
    heavy = replace(HEAVY, generator_was_late=True)
    run = Run(10.0, PROBES, light, heavy, 30.0)
    rows = run.table().rows
    assert [row[0] for row in rows] == [
        *("sustained", "sustained", "90% of the sustained", "200% of the sustained")
    ]
    assert rows[-1][1:] == ("20", "1200", "1200", "1000", "-", "25", "4")
    assert len(run.table().header) == len(rows[0])
    told = "\n".join(run.notes())
    assert "LATE: the generator did not keep up at 20/s." in told
    assert "DISTURBED: 1 of 4 probes" in told


def test_the_config_is_one_and_its_queue_is_the_bound() -> None:
    """As the server reads it; where it has no limit of time, a full queue's length is the bound."""
    options = overload._options(["--max-waiting", "64", "--queue-seconds", "7"])
    config = Config.model_validate(overload.config(options))
    assert config.engine.max_waiting == 64
    configured = getattr(config.engine, "max_queue_seconds", None)
    assert overload.queue_s(options, HEAVY) == (6.4 if configured is None else 7.0)


@pytest.mark.slow
def test_the_whole_bench_runs(
    demo_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With figures that say nothing: a report of all probes, and each bar with its verdict."""
    status = overload.main(
        [
            *("--seconds", "2", "--first-rate", "8", "--precision", "1.5", "--highest-rate", "64"),
            *("--prompt-tokens", "8", "--output-tokens", "48", "--slots", "2"),
            *("--max-waiting", "4", "--quiet-seconds", "0", "--store", str(demo_store)),
            *("--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")),
        ]
    )
    (written,) = (tmp_path / "results").glob("overload-*.json")
    report = json.loads(written.read_text(encoding="utf-8"))
    assert status == (0 if all(bar["met"] for bar in report["bars"]) else 1)
    assert report["sustained"] > 0
    assert report["heavy"]["rate"] == pytest.approx(2 * report["sustained"])
    for one in (*report["probes"], report["light"], report["heavy"]):
        assert one["sent"] == sum(one["statuses"].values()) > 0
    assert report["bars"][3]["met"]
    shown = capsys.readouterr().out
    assert shown.strip() == written.with_suffix(".md").read_text(encoding="utf-8").strip()
    assert "200% of the sustained" in shown
