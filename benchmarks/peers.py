"""``make bench-peers``: our server against the peers that one would pick instead, in turns.

Owns the order of a run: environments, quality on the demo model, cold starts, turns, loads, tables.
``docs/peers.md`` says how to read and reproduce it.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from artifacts.machine import usable_cores
from benchmarks.child import ChildError
from benchmarks.contenders import ROOT, Contender, Place
from benchmarks.ours import Server, Weights
from benchmarks.peer_lineup import NAMES, Lineup, chosen_for_load, is_fitted, streams
from benchmarks.peer_quality import MODEL, divergences
from benchmarks.peer_report import markdown, write_plots
from benchmarks.peer_results import PeerResults, read_results
from benchmarks.peer_turns import PeerTurns
from benchmarks.poisson import LoadPoint, capacity, under_load
from benchmarks.prompts import Prompts
from benchmarks.roster import Roster
from benchmarks.samples import Samples
from benchmarks.settings import Settings
from benchmarks.shapes import SHAPES, make_model
from benchmarks.starts import Starts
from server.comparison.load import Load
from server.comparison.machine import this_machine

_REFERENCE = "transformers"
_DEMO_VOCABULARY, _DEMO_LENGTH = 4_096, 512
_MAX_LENGTH = 2_304  # the longest prompt and an answer
_FEW = 1  # documents that a random model is measured on
_COMMON = 0.7  # of the lowest capacity among us and the two best peers
_SHARES = (0.1, 0.4, 0.7, 0.9, 1.1)  # of each one's own capacity


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench, or show a run that was written before; the process's exit code."""
    options = _options(arguments)
    # Ending on the usual way is what ends the children.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    progress = Console(stderr=True)
    if options.show:
        sys.stdout.write(markdown(read_results(options.show)))
        return 0
    failed = False
    try:
        for results in _Bench(options, progress).run():
            sys.stdout.write(markdown(results))
            failed |= bool(results.failures)
    except ChildError as error:
        progress.print(f"error: {error}", markup=False, highlight=False)
        return 1
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "--shape", choices=SHAPES, action="append", help="of the model; again for more of them"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: all cores")
    parser.add_argument("--without", action="append", default=[], choices=NAMES)
    parser.add_argument("--no-cold", action="store_true", help="use what an earlier run has built")
    parser.add_argument("--no-load", action="store_true", help="no Poisson load")
    parser.add_argument(
        "--load-seconds", type=float, default=60.0, help="of each load; default: %(default)g"
    )
    parser.add_argument("--quiet-seconds", type=float, default=20.0, help="wait so long for quiet")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print an earlier run")
    return parser.parse_args(arguments)


class _Bench:
    """One run, shape after shape."""

    def __init__(self, options: argparse.Namespace, progress: Console) -> None:
        self._options = options
        self._progress = progress
        self._load = Load()
        self._settings = Settings(
            rounds=options.rounds,
            prompt_tokens=32,
            new_tokens=64,
            long_prompt_tokens=2048,
            repeats=1,
            threads=options.threads,
            quiet_s=options.quiet_seconds,
        )

    def run(self) -> Iterable[PeerResults]:
        """The results of each shape, written as they come."""
        options = self._options
        work: Path = options.work.resolve()
        with ExitStack() as cleanup:
            clients = Place(work / "clients", MODEL, self._settings, [1])
            lineup = Lineup(
                work / "environments",
                grpc_client=cleanup.enter_context(clients.worker("grpc", "grpc_client")),
                llama_client=cleanup.enter_context(clients.worker("llama", "llama_client")),
                without=options.without,
            )
            quality = self._quality(lineup, work, cleanup)
            for name in options.shape or ["qwen2.5-0.5b"]:
                results = self._shape(lineup, work, name, quality, cleanup)
                path = (
                    options.results / f"peers-{name}-{results.created[:19].replace(':', '')}.json"
                )
                results.write(path)
                path.with_suffix(".md").write_text(markdown(results))
                write_plots(results, path.with_suffix(".html"))
                self._tell(f"written: {path}, .md and .html")
                yield results

    def _quality(self, lineup: Lineup, work: Path, cleanup: ExitStack) -> dict[str, float]:
        place = self._place(work / "demo", MODEL, _DEMO_VOCABULARY)
        # Without it no row of ours could stand against any rung.
        contenders = lineup.contenders(place, _DEMO_LENGTH, fits=True, needed=[_REFERENCE])
        return divergences(self._roster(contenders, cleanup), _REFERENCE, NAMES, work / "scores")

    def _shape(
        self,
        lineup: Lineup,
        work: Path,
        name: str,
        quality: dict[str, float],
        cleanup: ExitStack,
    ) -> PeerResults:
        created = datetime.now(UTC)
        shape = SHAPES[name]
        self._tell(f"model: {name}")
        place = self._place(work / name, make_model(work / "models", shape), shape.vocabulary)
        prompts = Prompts(shape.vocabulary)
        roster = self._roster(lineup.contenders(place, _MAX_LENGTH, fits=False), cleanup)
        contenders = roster.active()
        samples = Samples()
        starts = Starts(roster, load=self._load, quiet_s=self._settings.quiet_s)
        if not self._options.no_cold:
            starts.cold(samples, without=[one.name for one in contenders if is_fitted(one.name)])
        weights = _build_what_is_missing(roster)
        PeerTurns(roster, self._settings, prompts, load=self._load).run(samples)
        capacities: dict[str, float] = {}
        loads: list[LoadPoint] = []
        if not self._options.no_load:
            capacities = chosen_for_load(self._capacities(roster, prompts), quality)
            loads = self._loads(roster, prompts, capacities)
        return PeerResults(
            created=created.isoformat(timespec="seconds"),
            machine=this_machine(),
            settings=self._settings,
            shape=name,
            parameters=shape.parameters,
            versions={each.name: each.versions for each in contenders if each.versions},
            quality=quality,
            weights=weights,
            capacities=capacities,
            loads=loads,
            failures=roster.failures,
            samples=samples,
        )

    def _capacities(self, roster: Roster, prompts: Prompts) -> dict[str, float]:
        """Of everybody that serves while others run."""
        found: dict[str, float] = {}
        for contender in roster.active():
            if streams(contender.name):
                with roster.trying(contender, "capacity"):
                    contender.start()
                    found[contender.name] = capacity(contender, prompts, 0)
                    contender.end()
        return found

    def _loads(
        self, roster: Roster, prompts: Prompts, capacities: dict[str, float]
    ) -> list[LoadPoint]:
        """At the common rate in every round, and by shares of everybody's own capacity once."""
        if not capacities:
            return []
        common = _COMMON * min(capacities.values())
        found: list[LoadPoint] = []
        for round_ in range(self._settings.rounds):
            for contender in roster.round(round_):
                own = capacities.get(contender.name)
                if own is None:
                    continue
                rates = {f"{_COMMON:.0%} of the lowest capacity": common}
                if round_ == 0:
                    rates |= {f"{share:.0%} of its own capacity": share * own for share in _SHARES}
                with roster.trying(contender, f"load, round {round_ + 1}"):
                    found += self._under(contender, prompts, rates, round_)
        return found

    def _under(
        self, contender: Contender, prompts: Prompts, rates: dict[str, float], round_: int
    ) -> list[LoadPoint]:
        contender.start()
        points = [
            under_load(
                contender,
                prompts,
                rate=rate,
                seconds=self._options.load_seconds,
                share=share,
                round_=round_,
            )
            for share, rate in rates.items()
        ]
        contender.end()
        return points

    def _place(self, folder: Path, model: Path, vocabulary: int) -> Place:
        prompt = Prompts(vocabulary).draw("start", 0, 1, self._settings.prompt_tokens)[0]
        # Quality comes from the demo model: of random weights little is measured.
        folder.mkdir(parents=True, exist_ok=True)
        few = folder / "evaluation.jsonl"
        lines = (MODEL.parent / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
        few.write_text("\n".join(lines[:_FEW]), encoding="utf-8")
        return Place(folder, model, self._settings, prompt, few)

    def _roster(self, contenders: Sequence[Contender], cleanup: ExitStack) -> Roster:
        for contender in contenders:
            cleanup.callback(contender.end)
        return Roster(contenders, self._tell)

    def _tell(self, what: str) -> None:
        self._progress.print(
            f"[{datetime.now(UTC):%H:%M:%S}] {what}", markup=False, highlight=False
        )


def _build_what_is_missing(roster: Roster) -> dict[str, Weights]:
    """A first start may make something; those that are measured must not.

    Returns:
        Sizes of our rows' weights.
    """
    weights: dict[str, Weights] = {}
    for contender in roster.active():
        with roster.trying(contender, "first start"):
            contender.start()
            if isinstance(contender, Server):
                contender.describe()
                weights[contender.name] = contender.weights()
            contender.end()
    return weights


if __name__ == "__main__":
    sys.exit(main())
