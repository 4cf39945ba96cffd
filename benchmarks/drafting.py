"""What a variant that drafts gains, and that it changes no token.

``python -m benchmarks.drafting [--rounds 5]`` serves the demo model at the cost of SmolLM2-135M
(``benchmarks.padded_model``), without and with a draft: its own sibling, which has lost layers that
do something and was trained to predict as the whole model does. In float32 and in int4, greedy,
alone and with several streams at a time, in turns within a round, over gRPC; prompts are the
beginnings of the held-out texts. Prints tokens per second while decoding, their ratio, how many
guesses were right, what a token of the draft costs in parts of the target's, and whether every
token is the same. The exit code is 1 where a bar is missed or an answer differs. Keep other work
off the machine.

The sibling is made of the demo model itself, since a padded teacher says the same and takes several
times as long; then it is padded as well. The first run trains it, ten minutes at most;
``build/bench`` keeps it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from benchmarks.contenders import ROOT
from benchmarks.padded_model import DEMO, make_padded
from benchmarks.report import Table
from benchmarks.run_file import write_run
from benchmarks.samples import Spread, spread
from benchmarks.shapes import Shape
from benchmarks.sibling import make_sibling
from benchmarks.speculation import Found
from server.comparison.load import Load
from server.comparison.server_process import ServerProcess
from server.comparison.streams import Client, Stream, connected, decode_rate, exactly

BAR = 1.2
_QUIET_S = 60.0
_START_S = 3_600.0  # the training included
_TARGET, _DRAFT = "target", "draft"
_PLAIN, _DRAFTED = "plain", "drafted"
_SLOTS = 8

Chain = list[dict[str, Any]]

SIBLING: Chain = [
    {"restructure": {"method": "depth", "drop": 2}},
    {"distill": {"method": "recover", "tokens": 250_000, "minutes": 10}},
]
"""Of the demo model's six layers four are left: those that change most what flows through them."""

DRAFT_SHAPE = Shape("smollm2-135m-draft", 49_152, 576, 768, 4, 9, 3, 8_192)
"""The target's, with four of its thirty layers and half of their feed-forward channels."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and its draft.

    Attributes:
        name: Of both.
        target: The chain of the model as it is.
        smaller: How the sibling is quantized.
        tie: Nats between the two likeliest tokens below which either may win: a step of several
            tokens adds its floats in another order, and where activations are rounded to int8, one
            that lies between two steps of the scale may go to the other.
    """

    name: str
    target: Chain
    smaller: Chain
    tie: float


_INT4: dict[str, Any] = {"method": "weight_only", "bits": 4}
_ALL_INT4 = {**_INT4, "lm_head_bits": 4, "embedding_bits": 4}

PAIRS = {
    pair.name: pair
    for pair in (
        Pair("float32", [], [], tie=1e-3),
        # Guesses need not be exact: the draft's head, most of what is left of it, has 4 bits too.
        Pair("int4", [{"quantize": _INT4}], [{"quantize": _ALL_INT4}], tie=5e-2),
    )
}


@dataclass(slots=True)
class Measured:
    """Of one pair and one number of streams.

    Attributes:
        found: Rates without and with drafts, and what became of the guesses.
        margins: Of each answer that differs, what the two likeliest tokens were apart by, in nats,
            where it left the other one.
        costs: Seconds that a token of the draft takes over one of the target's, each asked by
            itself; one of each round.
    """

    found: Found = field(default_factory=Found)
    margins: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> Spread | None:
        """With a draft over without, round by round."""
        return spread([drafted / plain for plain, drafted in self.found.rates])

    @property
    def acceptance(self) -> float:
        """The share of guesses that were right."""
        return self.found.accepted / self.found.drafted if self.found.drafted else 0.0


Results = Mapping[str, Mapping[int, Measured]]
"""By pair, then by number of streams."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 where a bar is missed or an answer differs."""
    options = _options(arguments)
    created = datetime.now(UTC)
    models = options.work.resolve() / "models"
    target = make_padded(models)
    sibling, notes = make_sibling(models, DEMO, SIBLING, ROOT / "demo" / "calibration.jsonl", _say)
    draft = make_padded(models / f"{sibling.name}-padded", DRAFT_SHAPE, sibling)
    results = {
        name: asyncio.run(_measure(options, PAIRS[name], target, draft))
        for name in dict.fromkeys(options.pairs)
    }
    verdicts = [*judged(results)]
    told = "\n".join(
        [
            table(results).markdown(),
            "",
            *(f"- draft: {note}" for note in notes),
            *(f"- {'pass' if met else 'FAIL'}: {line}" for line, met in verdicts),
        ]
    )
    print(told)
    content = {
        "draft": {"chain": SIBLING, "notes": notes, "shape": asdict(DRAFT_SHAPE)},
        "results": {
            name: {streams: asdict(one) for streams, one in of_pair.items()}
            for name, of_pair in results.items()
        },
    }
    write_run(options.results, "drafting", created, content, told)
    return 0 if all(met for _, met in verdicts) else 1


def judged(results: Results) -> Iterator[tuple[str, bool]]:
    """What was measured beside the bars, and whether they are met: not by a missing figure."""
    for name, of_pair in results.items():
        alone = of_pair[1].ratio if 1 in of_pair else None
        told = "unknown" if alone is None else _shown(alone)
        line = f"{name}, 1 stream, with a draft over without: {told} (at least {BAR:g})"
        yield line, alone is not None and alone.median >= BAR
        margins = [margin for one in of_pair.values() for margin in one.margins]
        tie = PAIRS[name].tie
        apart = f", at most {max(margins):.2g} nats apart" if margins else ""
        line = f"{name}: same tokens but for ties of {tie:g} nats; {len(margins)} ties{apart}"
        yield line, all(margin <= tie for margin in margins)


def table(results: Results) -> Table:
    """A row per pair and number of streams."""
    return Table(
        "The demo model at the cost of SmolLM2-135M, with its sibling as draft",
        (
            "",
            "streams",
            "plain, tokens/s",
            "drafted, tokens/s",
            "ratio",
            "guesses right",
            "of all tokens",
            "draft's token over target's, s",
            "answers that differ",
        ),
        tuple(
            _row(name, streams, one)
            for name, of_pair in results.items()
            for streams, one in of_pair.items()
        ),
    )


def _row(name: str, streams: int, one: Measured) -> tuple[str, ...]:
    if one.ratio is None:
        return (name, str(streams), *[""] * 7)
    plain, drafted = (statistics.median(rates) for rates in zip(*one.found.rates, strict=True))
    return (
        name,
        str(streams),
        f"{plain:.0f}",
        f"{drafted:.0f}",
        _shown(one.ratio),
        f"{one.acceptance:.0%}",
        f"{one.found.accepted / one.found.generated:.0%}",
        f"{statistics.median(one.costs):.2f}" if one.costs else "",
        str(len(one.margins)),
    )


def _shown(found: Spread) -> str:
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


async def _measure(
    options: argparse.Namespace, pair: Pair, target: Path, draft: Path
) -> dict[int, Measured]:
    folder: Path = options.work.resolve() / "drafting"
    measured = {streams: Measured() for streams in options.streams}
    load = Load()
    sampling = exactly(options.new_tokens)
    with ExitStack() as servers:
        async with AsyncExitStack() as clients:
            asked: dict[str, Client] = {}
            for name in (_DRAFTED, _PLAIN, _DRAFT):  # the first one builds all there is to build
                config = write_config(folder / f"{pair.name}-{name}.yaml", pair, target, draft)
                server = ServerProcess(config, stderr=config.with_suffix(".log"))
                servers.enter_context(server)
                await asyncio.to_thread(server.wait_ready, _START_S)
                asked[name] = await clients.enter_async_context(connected(server.target))
            prompts = [
                (await asked[_PLAIN].tokenize(text))[: options.prompt_tokens] for text in texts()
            ]
            place = 0
            for round_ in range(options.rounds):
                for streams, one in measured.items():
                    chosen = [prompts[(place + index) % len(prompts)] for index in range(streams)]
                    place += streams
                    await asyncio.to_thread(load.wait_quiet, options.quiet_seconds)
                    order = (_PLAIN, _DRAFTED, _DRAFT)
                    turn: dict[str, tuple[Stream, ...]] = {}
                    for name in order if round_ % 2 == 0 else order[::-1]:
                        turn[name] = await asked[name].generate_all(chosen, sampling)
                    one.found.add(turn[_PLAIN], turn[_DRAFTED])
                    one.costs.append(decode_rate(turn[_PLAIN]) / decode_rate(turn[_DRAFT]))
                    one.margins += [
                        await asked[_PLAIN].margin((*prompt, *common))
                        for prompt, common in parted(chosen, turn[_PLAIN], turn[_DRAFTED])
                    ]
                    _tell(pair, round_, streams, one)
    return measured


def texts() -> Iterator[str]:
    """The held-out texts."""
    text = (ROOT / "demo" / "heldout.jsonl").read_text(encoding="utf-8")
    return (json.loads(line)["text"] for line in text.splitlines())


def parted(
    prompts: Sequence[Sequence[int]], plain: Sequence[Stream], drafted: Sequence[Stream]
) -> Iterator[tuple[Sequence[int], tuple[int, ...]]]:
    """The prompts whose answers differ, each with the tokens that both begin with."""
    for prompt, one, other in zip(prompts, plain, drafted, strict=True):
        pairs = zip(one.tokens, other.tokens, strict=False)
        differs = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
        if differs is not None:
            yield prompt, tuple(islice(one.tokens, differs))


def write_config(path: Path, pair: Pair, target: Path, draft: Path) -> Path:
    """Of a server with one variant, by the file's name; the one that is drafted for has two."""
    name = path.stem.removeprefix(f"{pair.name}-")
    variants: dict[str, Any] = {}
    if name != _DRAFT:
        speculation = {"method": "draft", "variant": _DRAFT} if name == _DRAFTED else None
        variants[_TARGET] = {"chain": pair.target, "speculation": speculation}
    if name != _PLAIN:
        variants[_DRAFT] = [{"distill": {"substitute": str(draft)}}, *pair.smaller]
    config = {
        "model": str(target),
        "store": str(path.parent / "store"),
        "offline": True,
        "calibration": {"text": str(ROOT / "demo" / "calibration.jsonl")},
        "evaluation": {"text": str(ROOT / "demo" / "heldout.jsonl")},
        "variants": variants,
        "engine": {"slots": _SLOTS},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _tell(pair: Pair, round_: int, streams: int, one: Measured) -> None:
    plain, drafted = one.found.rates[-1]
    _say(
        f"{pair.name}, round {round_ + 1}, {streams} streams: {plain:.1f} and {drafted:.1f} "
        f"tokens/s, {drafted / plain:.2f}; guesses right {one.acceptance:.0%}; draft's token "
        f"{one.costs[-1]:.2f} of the target's"
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drafting", description=__doc__)
    parser.add_argument("--pairs", choices=PAIRS, nargs="+", default=[*PAIRS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--prompt-tokens", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--quiet-seconds", type=float, default=_QUIET_S)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "bench", help="model, store and logs"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
