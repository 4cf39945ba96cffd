"""``make bench``: our server against transformers and optimum, side by side, in turns.

Owns the order of a run: model, cold starts, the same tokens from everybody, turns, warm starts,
tables. ``benchmarks/README.md`` says how to read them.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

from rich.console import Console

from artifacts.machine import usable_cores
from benchmarks import lineup
from benchmarks.child import ChildError
from benchmarks.contenders import ROOT, Place
from benchmarks.generate_peer import Peer
from benchmarks.optimum_environment import VARIABLE, optimum_python
from benchmarks.ours import Server
from benchmarks.prompts import Prompts
from benchmarks.report import markdown, show
from benchmarks.roster import Roster
from benchmarks.samples import Samples
from benchmarks.serving_results import Results, read_results
from benchmarks.settings import Settings
from benchmarks.shapes import SHAPES, make_model
from benchmarks.starts import Starts
from benchmarks.turns import Turns
from server.comparison.load import Load
from server.comparison.machine import this_machine

_AGREE_TOKENS = 32
_WIDTH = 180  # of tables that go into a file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench, or show a run that was written before; the process's exit code."""
    options = _options(arguments)
    # Ending on the usual way is what ends the children.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    progress = Console(stderr=True)
    try:
        results = read_results(options.show) if options.show else _run(options, progress)
    except ChildError as error:
        progress.print(f"error: {error}", markup=False, highlight=False)
        return 1
    if options.markdown:
        sys.stdout.write(markdown(results))
    else:
        show(results, console)
    return 1 if results.failures else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="of the model")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--quick", action="store_true", help="one round of few tokens")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: all cores")
    parser.add_argument(
        "--without", action="append", default=[], choices=lineup.LABELS, help="leave one out"
    )
    parser.add_argument(
        "--no-cold",
        action="store_true",
        help="use what an earlier run has built; cold starts are not measured",
    )
    parser.add_argument(
        "--quiet-seconds",
        type=float,
        default=20.0,
        help="how long to wait for a quiet machine before each turn",
    )
    parser.add_argument(
        "--optimum-python",
        default=os.environ.get(VARIABLE),
        help=f"interpreter with optimum-onnx (or ${VARIABLE}); default: .venv-optimum, set up "
        "when missing",
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "bench", help="model, stores and logs"
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="what was found out"
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown, for the README")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print an earlier run")
    return parser.parse_args(arguments)


def _settings(options: argparse.Namespace) -> Settings:
    quick = options.quick
    return Settings(
        rounds=1 if quick else options.rounds,
        prompt_tokens=32,
        new_tokens=16 if quick else 64,
        long_prompt_tokens=256,
        repeats=1 if quick else 3,
        threads=options.threads,
        quiet_s=options.quiet_seconds,
    )


def _run(options: argparse.Namespace, progress: Console) -> Results:
    def tell(what: str) -> None:
        progress.print(f"[{datetime.now(UTC):%H:%M:%S}] {what}", markup=False, highlight=False)

    created = datetime.now(UTC)
    machine = this_machine()
    settings = _settings(options)
    shape = SHAPES[options.shape]
    optimum = None
    if lineup.OPTIMUM not in options.without:
        tell("looking for optimum, or setting it up")
        optimum = optimum_python(ROOT, options.optimum_python)
    tell(f"model: {shape.name}")
    folder: Path = options.work.resolve()
    model = make_model(folder / "models", shape)
    prompts = Prompts(shape.vocabulary)
    first_prompt = prompts.draw("start", 0, 1, settings.prompt_tokens)[0]
    place = Place(folder / shape.name, model, settings, first_prompt)
    load = Load()
    samples = Samples()
    with ExitStack() as cleanup:
        client = cleanup.enter_context(place.worker("client", "grpc_client"))
        contenders = lineup.lineup(place, client=client, optimum=optimum, without=options.without)
        for contender in contenders:
            cleanup.callback(contender.end)
        roster = Roster(contenders, tell)
        starts = Starts(roster, load=load, quiet_s=settings.quiet_s)
        if not options.no_cold:
            starts.cold(samples)
        variants = _start_all(roster)
        agreement = _agreement(roster, prompts, settings)
        Turns(roster, settings, prompts, load=load).run(samples)
        for contender in contenders:
            contender.end()
        starts.warm(samples, settings.rounds)
        results = Results(
            created=created.isoformat(timespec="seconds"),
            machine=machine,
            settings=settings,
            shape=shape.name,
            parameters=shape.parameters,
            versions={peer.name: peer.versions for peer in contenders if isinstance(peer, Peer)},
            variants=variants,
            agreement=agreement,
            agreement_wanted=_AGREE_TOKENS,
            failures=roster.failures,
            samples=samples,
        )
    path = options.results / f"serving-{created:%Y%m%d-%H%M%S}.json"
    results.write(path)
    path.with_suffix(".md").write_text(markdown(results))
    tell(f"written: {path} and .md")
    return results


def _start_all(roster: Roster) -> dict[str, dict[str, object]]:
    """Start and pause everybody; what our server says of its variants."""
    variants = {}
    for contender in roster.active():
        with roster.trying(contender, "starting"):
            contender.start()
            if isinstance(contender, Server):
                variants[contender.name] = contender.describe()
            contender.pause()
    return variants


def _agreement(roster: Roster, prompts: Prompts, settings: Settings) -> dict[str, int]:
    """Of each float32 contender, how many leading greedy tokens are as the reference's."""
    prompt = prompts.draw("agreement", 0, 1, settings.prompt_tokens)
    given: dict[str, list[int]] = {}
    for contender in roster.active():
        if contender.name in lineup.FLOAT32:
            with roster.trying(contender, "asking for the same tokens"):
                contender.resume()
                given[contender.name] = contender.generate(prompt, _AGREE_TOKENS)["tokens"][0]
                contender.pause()
    reference = next((given[name] for name in lineup.FLOAT32 if name in given), [])
    return {name: _equal_tokens(tokens, reference) for name, tokens in given.items()}


def _equal_tokens(tokens: list[int], reference: list[int]) -> int:
    pairs = zip(tokens, reference, strict=True)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


if __name__ == "__main__":
    sys.exit(main())
