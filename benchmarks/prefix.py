"""What a prefix that was computed before saves: time to first token over that of unlike prompts.

``python -m benchmarks.prefix [--rounds 5] [--shape qwen2.5-0.5b]`` serves a model of random weights
in int4 and asks it over gRPC for 8 streams at the same moment, in turns within a round:

- **cold**: prompts of 1,000 tokens that share nothing, neither among each other nor with anything
  before. The server must say that it reused none of them, which is what a server without a prefix
  cache does.
- **warm**: prompts whose first 900 tokens are the same, and were computed by an earlier request.
- **alike**: the same as warm, but nobody has computed the common tokens before.

Prints the time to first token of the streams in the middle and of the slowest one, and their ratios
to cold, taken within each round. Both are to be at most 0.15 when warm: the exit code is 1
otherwise. Keep other work off the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from artifacts.machine import usable_cores
from benchmarks.contenders import ROOT
from benchmarks.prompts import Prompts
from benchmarks.report import Table
from benchmarks.run_file import write_run
from benchmarks.samples import Spread, spread
from benchmarks.settings import write_config
from benchmarks.shapes import SHAPES, make_model
from server.comparison.load import Load
from server.comparison.server_process import ServerProcess
from server.comparison.streams import Client, Stream, connected, exactly

COLD, WARM, ALIKE = "cold", "warm", "alike"
KINDS = (COLD, WARM, ALIKE)
BAR = 0.15
_MOST_NEW_TOKENS = 64
_QUIET_S = 60.0
_START_S = 1_800.0  # the build included


@dataclass(frozen=True, slots=True)
class Turn:
    """The streams of one turn.

    Attributes:
        kind: What their prompts have in common.
        round: In which round.
        first_token_s: From the request to the first token, of each stream.
        cached_tokens: Of each prompt, what was not computed anew.
    """

    kind: str
    round: int
    first_token_s: tuple[float, ...]
    cached_tokens: tuple[int, ...]

    @property
    def middle_s(self) -> float:
        """The median of the streams."""
        return statistics.median(self.first_token_s)

    @property
    def slowest_s(self) -> float:
        """The last stream to get a token."""
        return max(self.first_token_s)


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many tokens of a prompt are common, and how many there are."""

    common: int
    prompt: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 where the bar is missed."""
    options = _options(arguments)
    created = datetime.now(UTC)
    turns = asyncio.run(_measure(options))
    lengths = Lengths(options.common_tokens, options.prompt_tokens)
    verdicts = [*judged(turns, lengths)]
    told = "\n".join(
        [
            table(turns, options).markdown(),
            "",
            *(f"- {'pass' if met else 'FAIL'}: {line}" for line, met in verdicts),
        ]
    )
    print(told)
    content = {
        "shape": options.shape,
        "lengths": asdict(lengths),
        "turns": [asdict(turn) for turn in turns],
    }
    write_run(options.results, f"prefix-{options.shape}", created, content, told)
    return 0 if all(met for _, met in verdicts) else 1


def judged(turns: Sequence[Turn], lengths: Lengths) -> Iterator[tuple[str, bool]]:
    """What was measured beside the bar, and whether it is met: not by a missing figure."""
    for title, figure in (("the streams' median", "middle_s"), ("the slowest stream", "slowest_s")):
        found = ratio(turns, WARM, figure)
        told = "unknown" if found is None else _shown(found)
        line = f"{title}, {WARM} over {COLD}: {told} (at most {BAR:g})"
        yield line, found is not None and found.median <= BAR
    reused = {
        kind: [n for one in turns if one.kind == kind for n in one.cached_tokens]
        for kind in (COLD, WARM)
    }
    unlike = bool(reused[COLD]) and not any(reused[COLD])
    yield "cold prompts share nothing with any before", unlike
    # Prefixes are found by blocks, and never longer than what is common.
    yield (
        f"warm prompts have {lengths.common} tokens in common with one before",
        bool(reused[WARM]) and all(n == lengths.common for n in reused[WARM]),
    )


def ratio(turns: Sequence[Turn], kind: str, figure: str) -> Spread | None:
    """Of a kind over cold, each round by itself, so that the machine's drift cancels out."""
    by_round = {(turn.kind, turn.round): float(getattr(turn, figure)) for turn in turns}
    return spread(
        [
            seconds / by_round[COLD, round_]
            for (one, round_), seconds in by_round.items()
            if one == kind and (COLD, round_) in by_round
        ]
    )


def table(turns: Sequence[Turn], options: argparse.Namespace) -> Table:
    """Medians of the rounds, and ratios taken within them."""
    rows = []
    taken = {turn.kind for turn in turns}
    for kind in filter(taken.__contains__, KINDS):
        cells = [kind]
        for figure in ("middle_s", "slowest_s"):
            seconds = [getattr(turn, figure) for turn in turns if turn.kind == kind]
            found = ratio(turns, kind, figure)
            cells.append(f"{statistics.median(seconds):.3f}")
            cells.append("" if found is None else _shown(found))
        rows.append(tuple(cells))
    return Table(
        f"Seconds to first token: {options.shape}, int4, {options.streams} streams at once, "
        f"{options.common_tokens} of {options.prompt_tokens} tokens alike, "
        f"{options.threads} threads",
        ("", "median stream, s", "over cold", "slowest stream, s", "over cold"),
        tuple(rows),
    )


def _shown(found: Spread) -> str:
    return f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"


async def _measure(options: argparse.Namespace) -> list[Turn]:
    shape = SHAPES[options.shape]
    folder: Path = options.work.resolve()
    place = folder / f"prefix-{shape.name}"
    config = write_config(
        place / "config.yaml",
        model=make_model(folder / "models", shape),
        store=place / "store",
        variant="int4",
        chain=[{"quantize": {"method": "weight_only", "bits": 4}}],
        threads=options.threads,
        max_length=options.prompt_tokens + _MOST_NEW_TOKENS,
    )
    asker = _Asker(options, Prompts(shape.vocabulary))
    load = Load()
    turns: list[Turn] = []
    with ServerProcess(config, stderr=place / "server.log") as server:
        await asyncio.to_thread(server.wait_ready, _START_S)
        async with connected(server.target) as client:
            await asker.turn(client, COLD, -1)  # memory that is touched first costs more
            for round_ in range(options.rounds):
                kinds = [kind for kind in KINDS if kind in {COLD, *options.kinds}]
                for kind in kinds if round_ % 2 == 0 else reversed(kinds):
                    await asyncio.to_thread(load.wait_quiet, options.quiet_seconds)
                    turns.append(await asker.turn(client, kind, round_))
                    _tell(turns[-1])
    return turns


class _Asker:
    """Makes prompts and asks for what follows them."""

    def __init__(self, options: argparse.Namespace, prompts: Prompts) -> None:
        self._options = options
        self._prompts = prompts
        self._sampling = exactly(options.new_tokens)

    async def turn(self, client: Client, kind: str, round_: int) -> Turn:
        """All streams at once."""
        options = self._options
        common, length = options.common_tokens, options.prompt_tokens
        # One more than there are streams: the earlier request. A round's number is not negative.
        prompts = self._prompts.draw(kind, round_ + 1, options.streams + 1, length)
        *chosen, earlier = prompts
        if kind != COLD:
            chosen = [earlier[:common] + one[common:] for one in chosen]
        if kind == WARM:
            await client.generate(earlier, exactly(1))
        streams = await client.generate_all(chosen, self._sampling)
        return turn_of(kind, round_, streams)


def turn_of(kind: str, round_: int, streams: Sequence[Stream]) -> Turn:
    """What is kept of a turn's streams."""
    return Turn(
        kind,
        round_,
        tuple(stream.first_token_s for stream in streams),
        tuple(stream.cached_tokens for stream in streams),
    )


def _tell(turn: Turn) -> None:
    print(
        f"round {turn.round + 1}, {turn.kind}: {turn.middle_s:.3f} s, the slowest "
        f"{turn.slowest_s:.3f} s, tokens reused {sum(turn.cached_tokens)}",
        file=sys.stderr,
        flush=True,
    )


def _options(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b", help="of the model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", choices=KINDS[1:], nargs="+", default=KINDS[1:])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=1_000)
    parser.add_argument("--common-tokens", type=int, default=900, help="of each prompt's beginning")
    parser.add_argument("--new-tokens", type=int, default=8, help=f"at most {_MOST_NEW_TOKENS}")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: all cores")
    parser.add_argument("--quiet-seconds", type=float, default=_QUIET_S)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "bench", help="model, store and logs"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
