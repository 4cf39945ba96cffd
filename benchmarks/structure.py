"""``python -m benchmarks.structure``: what leaving out layers, channels and heads gains in speed.

Owns the variants and the bar: without a quarter of its layers, a model decodes and prefills at
least 1.2 times as fast. Speed depends on shape alone, so weights are random and what goes is chosen
without a text. Turns, waiting for a quiet machine and ratios are those of the serving bench.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from artifacts.machine import usable_cores
from benchmarks.contenders import ROOT, Place
from benchmarks.ours import Server
from benchmarks.prompts import Prompts
from benchmarks.report import Table
from benchmarks.roster import Roster
from benchmarks.samples import Measure, Samples, Spread
from benchmarks.settings import Settings
from benchmarks.shapes import SHAPES, Shape, make_model
from benchmarks.turns import Turns
from server.comparison.load import Load

ORIGINAL, DEPTH, FFN, HEADS, BOTH = "original", "depth", "ffn", "heads", "depth-ffn"
_AT_LEAST = 1.2
_MEASURES = (Measure.ONE_STREAM, Measure.EIGHT_STREAMS, Measure.FIRST_TOKEN)


def chains(shape: Shape) -> dict[str, list[dict[str, Any]]]:
    """The variants of a model by name; the first is the model as it is."""
    depth = {"restructure": {"method": "depth", "drop": -(-shape.layers // 4), "score": "last"}}
    width = {"method": "width", "score": "magnitude"}
    ffn = {"restructure": {**width, "ffn": 0.75}}
    heads = {"restructure": {**width, "kv_groups": shape.kv_heads - 1}}
    return {ORIGINAL: [], DEPTH: [depth], FFN: [ffn], HEADS: [heads], BOTH: [depth, ffn]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when something failed or the bar is missed."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    shape = SHAPES[options.shape]
    samples, failures = _run(options, shape)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(shape, samples).markdown(), markup=False, highlight=False)
    for name, why in failures.items():
        console.print(f"failed: {name}: {why}", markup=False, highlight=False)
    missed = [line for line, met in judged(samples) if not met]
    for line, met in judged(samples):
        console.print(f"{'pass' if met else 'FAIL'}: {line}", markup=False, highlight=False)
    return 1 if failures or missed else 0


def table(shape: Shape, samples: Samples) -> Table:
    """Medians, and ratios to the original taken round by round."""
    return Table(
        f"Structure: {shape.name}, float32, median and times as fast as the original",
        ("", *(f"{measure.value}, x" for measure in _MEASURES)),
        tuple(
            (name, *(_cell(samples, name, measure) for measure in _MEASURES))
            for name in chains(shape)
        ),
    )


def judged(samples: Samples) -> Iterator[tuple[str, bool]]:
    """What was measured beside the bar, and whether it is met: not by a missing figure."""
    for what, measure in (("decodes", Measure.ONE_STREAM), ("prefills", Measure.FIRST_TOKEN)):
        gain = speedup(samples, DEPTH, measure)
        told = "unknown" if gain is None else f"{gain.median:.2f} times"
        line = f"without a quarter of its layers it {what} {told} as fast (at least {_AT_LEAST})"
        yield line, gain is not None and gain.median >= _AT_LEAST


def speedup(samples: Samples, name: str, measure: Measure) -> Spread | None:
    """How many times as fast as the original; of seconds, the original's over the variant's."""
    if measure is Measure.FIRST_TOKEN:
        return samples.ratio(measure, ORIGINAL, name)
    return samples.ratio(measure, name, ORIGINAL)


def _cell(samples: Samples, name: str, measure: Measure) -> str:
    figure, gain = samples.spread(name, measure), speedup(samples, name, measure)
    if figure is None or gain is None:
        return ""
    return f"{figure.median:.4g}, {gain.median:.2f} ({gain.low:.2f} to {gain.high:.2f})"


def _run(options: argparse.Namespace, shape: Shape) -> tuple[Samples, dict[str, str]]:
    settings = Settings(
        rounds=options.rounds,
        prompt_tokens=32,
        new_tokens=options.new_tokens,
        long_prompt_tokens=256,
        repeats=options.repeats,
        threads=options.threads,
        quiet_s=options.quiet_seconds,
    )
    folder: Path = options.work.resolve()
    model = make_model(folder / "models", shape)
    prompts = Prompts(shape.vocabulary)
    first_prompt = prompts.draw("start", 0, 1, settings.prompt_tokens)[0]
    place = Place(folder / f"structure-{shape.name}", model, settings, first_prompt)
    progress = Console(stderr=True)
    samples = Samples()
    with ExitStack() as cleanup:
        client = cleanup.enter_context(place.worker("client", "grpc_client"))
        servers = [
            Server(name, place, chain=chain, client=client) for name, chain in chains(shape).items()
        ]
        for server in servers:
            cleanup.callback(server.end)
        roster = Roster(servers, lambda what: progress.print(what, markup=False, highlight=False))
        for server in servers:
            with roster.trying(server, "building and starting"):
                server.start()
                server.pause()
        Turns(roster, settings, prompts, load=Load()).run(samples)
    return samples, roster.failures


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structure", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="of the model")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant")
    parser.add_argument("--repeats", type=int, default=3, help="figures per turn")
    parser.add_argument("--new-tokens", type=int, default=64, help="generated per request")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: all cores")
    parser.add_argument(
        "--quiet-seconds",
        type=float,
        default=20.0,
        help="how long to wait for a quiet machine before each turn",
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "bench", help="model, stores and logs"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
