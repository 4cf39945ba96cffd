"""``make bench-overload``: what a server sustains, and what twice that does to it.

Owns the server, the order of the run and its report: the highest sustained rate, then 90 % of it,
then twice it. The search and the bars are in ``benchmarks.sustainable``; requests are those of
``inference-unlimited bench``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console

from benchmarks.contenders import ROOT
from benchmarks.report import Table
from benchmarks.sustainable import HEAVY, LIGHT, Probe, find, judged, probe_of
from server.bench.arrivals import Plan
from server.bench.lengths import parse_lengths
from server.bench.run import Load, Record
from server.bench.session import TEXT, open_run
from server.comparison.load import QUIET_CORES
from server.comparison.load import Load as Machine
from server.comparison.machine import this_machine
from server.comparison.server_process import ServerProcess, ServerProcessError
from server.config.fields import EngineSection

_QUEUE_SECONDS = "max_queue_seconds"


@dataclass(frozen=True, slots=True)
class Run:
    """What was found out.

    Attributes:
        sustained: The highest sustained rate; None where none was found.
        probes: Those of the search.
        light: At 90 % of it.
        heavy: At twice that rate.
        queue_s: The longest that an admitted request waits.
    """

    sustained: float | None
    probes: tuple[Probe, ...]
    light: Probe | None = None
    heavy: Probe | None = None
    queue_s: float = math.inf

    def bars(self) -> list[tuple[str, bool]]:
        """Each bar beside what was measured, and whether it is met."""
        if self.sustained is None or self.light is None or self.heavy is None:
            return [("no rate was sustained", False)]
        return list(judged(self.probes, self.light, self.heavy, self.queue_s))

    def table(self) -> Table:
        """All probes in the order in which they were taken."""
        return Table(
            "Overload: the demo model, Poisson arrivals",
            (
                "",
                "requests/s",
                "answered",
                "refused",
                "tokens/s",
                "p95 in queue, s",
                "p95 to first token, s",
                "p99 of refusals, ms",
            ),
            tuple(
                (
                    name,
                    f"{one.rate:.3g}",
                    str(one.statuses.get("ok", 0)),
                    str(one.refused),
                    f"{one.tokens_per_second:.0f}",
                    _cell(one.queue_p95_s),
                    _cell(one.first_token_p95_s),
                    _cell(one.refusal_p99_s, 1000),
                )
                for name, one in self._named()
            ),
        )

    def notes(self) -> Iterator[str]:
        """What makes figures say less than they seem to."""
        named = list(self._named())
        late = [f"{one.rate:.3g}/s" for _, one in named if one.generator_was_late]
        if late:
            yield f"LATE: the generator did not keep up at {', '.join(late)}."
        disturbed = sum(one.others_cores > QUIET_CORES for _, one in named)
        if disturbed:
            yield (
                f"DISTURBED: {disturbed} of {len(named)} probes were taken while others used more "
                f"than {QUIET_CORES:g} cores."
            )

    def _named(self) -> Iterator[tuple[str, Probe]]:
        for one in self.probes:
            yield ("sustained" if one.is_sustained else "too much"), one
        if self.light is not None:
            yield f"{LIGHT:.0%} of the sustained", self.light
        if self.heavy is not None:
            yield f"{HEAVY:.0%} of the sustained", self.heavy


class Bench:
    """Takes probes of a running server."""

    def __init__(self, options: argparse.Namespace, server: ServerProcess, say: Console) -> None:
        self._options = options
        self._server = server
        self._process = psutil.Process(server.process.pid)
        self._text = TEXT.read_text(encoding="utf-8")
        self._machine = Machine()
        self._say = say
        self._taken = 0

    def run(self) -> Run:
        """Find what is sustained, then load more."""
        options = self._options
        sustained, probes = find(
            self.probe,
            options.first_rate,
            precision=options.precision,
            lowest=options.first_rate / 1024,
            highest=options.highest_rate,
        )
        if sustained is None:
            return Run(None, tuple(probes))
        light, heavy = self.probe(LIGHT * sustained), self.probe(HEAVY * sustained)
        return Run(sustained, tuple(probes), light, heavy, queue_s(options, heavy))

    def probe(self, rate: float) -> Probe:
        """One run at a rate, on a machine as quiet as it gets."""
        self._machine.wait_quiet(self._options.quiet_seconds)
        self._taken += 1  # another seed each time, so that no prompt is met again
        seed = self._options.seed + self._taken
        load = Load(
            Plan(rate, 1, self._options.seconds, None, seed),
            parse_lengths(self._options.prompt_tokens, "--prompt-tokens"),
            parse_lengths(self._options.output_tokens, "--output-tokens"),
        )
        others = self._machine.span(self._own_s)
        sent, record = asyncio.run(self._ran(load))
        one = probe_of(rate, sent, record, others())
        verdict = "sustained" if one.is_sustained else "too much"
        told = f"{rate:.3g} requests/s: {verdict}, p95 in the queue {_cell(one.queue_p95_s)} s"
        self._say.print(told, markup=False, highlight=False)
        return one

    async def _ran(self, load: Load) -> tuple[int, Record]:
        async with open_run(self._server.target, self._text, load) as run:
            await run.measure()
            return run.sent, run.record()

    def _own_s(self) -> float:
        times = self._process.cpu_times()
        return time.process_time() + float(times.user + times.system)


def queue_s(options: argparse.Namespace, heavy: Probe) -> float:
    """The longest that an admitted request waits: as configured, else a full queue's length."""
    if _QUEUE_SECONDS in EngineSection.model_fields:
        return float(options.queue_seconds)
    return float(options.max_waiting) / max(heavy.answered_per_second, 1e-9)


def config(options: argparse.Namespace) -> dict[str, Any]:
    """The server's config."""
    engine: dict[str, Any] = {"slots": options.slots, "max_waiting": options.max_waiting}
    if _QUEUE_SECONDS in EngineSection.model_fields:
        engine[_QUEUE_SECONDS] = options.queue_seconds
    store = options.store or options.work / "store"
    return {
        "model": "demo",
        "store": str(store.resolve()),
        "variants": {"baseline": []},
        "engine": engine,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when something failed or a bar is missed."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    created = datetime.now(UTC)
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / "config.yaml"
    path.write_text(yaml.safe_dump(config(options), sort_keys=False), encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        with ServerProcess(path, stderr=options.work / "server.log") as server:
            server.wait_ready()
            run = Bench(options, server, Console(stderr=True)).run()
    except ServerProcessError as error:
        console.print(f"failed: {error}", markup=False, highlight=False)
        return 1
    told = "\n".join(_told(run))
    console.print(told, markup=False, highlight=False)
    written = options.results / f"overload-{created:%Y%m%d-%H%M%S}.json"
    written.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "created": created.isoformat(timespec="seconds"),
        "machine": this_machine().as_json(),
        "options": {name: _plain(value) for name, value in vars(options).items()},
        **asdict(run),
        "bars": [{"bar": line, "met": met} for line, met in run.bars()],
    }
    written.write_text(json.dumps(content, indent=1), encoding="utf-8")
    written.with_suffix(".md").write_text(told + "\n", encoding="utf-8")
    return 0 if all(met for _, met in run.bars()) else 1


def _told(run: Run) -> Iterator[str]:
    yield run.table().markdown()
    yield ""
    if run.sustained is not None:
        yield f"sustained: {run.sustained:.3g} requests/s"
    yield from run.notes()
    yield from (f"{'pass' if met else 'FAIL'}: {line}" for line, met in run.bars())


def _cell(value: float | None, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:.3g}"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each probe")
    parser.add_argument("--first-rate", type=float, default=2.0, help="requests/s, to begin with")
    parser.add_argument("--highest-rate", type=float, default=512.0, help="that is tried")
    parser.add_argument(
        "--precision", type=float, default=0.05, help="how exactly the rate is found, as a part"
    )
    parser.add_argument("--prompt-tokens", default="uniform:16:128", help="as of the bench command")
    parser.add_argument("--output-tokens", default="uniform:8:64", help="as of the bench command")
    parser.add_argument("--slots", type=int, default=16, help="of the engine")
    parser.add_argument("--max-waiting", type=int, default=256, help="of the engine")
    parser.add_argument("--queue-seconds", type=float, default=30.0, help="the longest wait")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    parser.add_argument(
        "--quiet-seconds", type=float, default=20.0, help="to wait for a quiet machine, per probe"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "overload", help="config, store and log"
    )
    parser.add_argument("--store", type=Path, help="artifacts, by default below --work")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="what was found out"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
