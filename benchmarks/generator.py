"""``python -m benchmarks.generator``: how much load one process of the generator can make.

Owns a server in a process of its own that answers at once, and the doubling of the rate until more
than one request of a hundred is sent late. The figure is of the generator, so of
``inference-unlimited bench``, on a machine that also runs that server.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.child import Child
from benchmarks.contenders import ROOT, child_environment
from benchmarks.report import Table
from server.bench.arrivals import Plan
from server.bench.lengths import parse_lengths
from server.bench.run import Load, Record
from server.bench.session import TEXT, open_run
from server.bench.summary import Objective, summarize

_ANSWER_S = 60.0
_HEADER = ("requests/s", "answered/s", "tokens/s", "late", "mean lateness, ms", "most, ms")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _options(arguments)
    command = [sys.executable, "-m", "benchmarks.workers.instant_server"]
    log: Path = options.work / "instant-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    child = Child(command, cwd=ROOT, environment=child_environment(), log=log)
    try:
        target = f"127.0.0.1:{child.ask('start', timeout_s=_ANSWER_S)['port']}"
        rows = tuple(_rows(target, options))
    finally:
        child.end()
    title = f"The generator alone: {options.output_tokens} tokens a request, one message each"
    print(Table(title, _HEADER, rows).markdown())
    return 0


def _rows(target: str, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    rate, was_late = options.first_rate, False
    while not was_late and rate <= options.highest_rate:
        load = Load(
            Plan(rate, 1, options.seconds, None),
            parse_lengths("uniform:16:128", "--prompt-tokens"),
            parse_lengths(str(options.output_tokens), "--output-tokens"),
        )
        report = summarize(asyncio.run(_ran(target, load)), Objective())
        was_late, lateness = report["generator_was_late"], report["lateness_seconds"]
        yield (
            f"{rate:g}",
            f"{report['requests_per_second']:.0f}",
            f"{report['tokens_per_second']:.0f}",
            f"{report['late_requests'] / max(report['requests'], 1):.1%}",
            f"{lateness['mean'] * 1000:.1f}",
            f"{lateness['max'] * 1000:.0f}",
        )
        rate *= 2


async def _ran(target: str, load: Load) -> Record:
    async with open_run(target, TEXT.read_text(encoding="utf-8"), load) as run:
        await run.measure()
        return run.record()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generator", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate")
    parser.add_argument("--first-rate", type=float, default=50.0, help="requests/s, to begin with")
    parser.add_argument("--highest-rate", type=float, default=12_800.0, help="that is tried")
    parser.add_argument("--output-tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "generator", help="log")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
