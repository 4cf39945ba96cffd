"""What speculative decoding gains, and that it changes no token.

``python -m benchmarks.speculation [--rounds 5]`` serves the demo model (or ``--model``) twice,
without and with prompt lookup, and has both edit code: a prompt is a function of the held-out texts
and the beginning of its copy. Greedy, alone and with several streams at a time, in turns within a
round, over gRPC. Prints the tokens per second while decoding, their ratio, how many guesses were
right, and whether every token is the same; a token may differ only where the plain model's two
likeliest ones are as near as float rounding. Keep other work off the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.contenders import ROOT
from server.comparison.load import Load
from server.comparison.server_process import ServerProcess
from server.comparison.streams import Client, Stream, connected, decode_rate, exactly

BAR = 1.5
_PLAIN, _LOOKED_UP = "plain", "prompt lookup"
_QUIET_S = 60.0
_LONGEST = 900  # characters of a function, so that prompt and answer fit the demo model's context
_SHORTEST = 300


@dataclass(slots=True)
class Found:
    """Of one number of streams: pairs of tokens per second, and what became of the guesses."""

    rates: list[tuple[float, float]] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    generated: int = 0
    different: int = 0

    @property
    def ratio(self) -> float:
        """With guesses over without, the median of the rounds."""
        return statistics.median(fast / plain for plain, fast in self.rates)

    def add(self, plain: Sequence[Stream], fast: Sequence[Stream]) -> None:
        """One turn of both, with the same prompts."""
        self.rates.append((decode_rate(plain), decode_rate(fast)))
        self.drafted += sum(stream.draft_tokens for stream in fast)
        self.accepted += sum(stream.accepted_tokens for stream in fast)
        self.generated += sum(len(stream.tokens) for stream in fast)
        self.different += sum(a.tokens != b.tokens for a, b in zip(plain, fast, strict=True))

    def line(self, streams: int) -> str:
        """For a table."""
        plain, fast = (statistics.median(rates) for rates in zip(*self.rates, strict=True))
        ratios = [fast / plain for plain, fast in self.rates]
        rate = self.accepted / self.drafted if self.drafted else 0.0
        return (
            f"| {streams} | {plain:.0f} | {fast:.0f} | {self.ratio:.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {rate:.0%} | "
            f"{self.accepted / self.generated:.0%} | {self.different} |"
        )


def main() -> None:
    """Print a line per number of streams; the exit code is 1 where an answer differs."""
    parser = argparse.ArgumentParser(description="Prompt lookup against plain decoding.")
    parser.add_argument("--model", default="demo", help="hub id, folder, or demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--quiet-seconds", type=float, default=_QUIET_S)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = asyncio.run(_measure(options, Path(work)))
    print(
        "| streams | plain, tokens/s | looked up, tokens/s | ratio | guesses right | "
        "of all tokens | answers that differ |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for streams, one in found.items():
        print(one.line(streams))
    if 1 in found:
        verdict = "pass" if found[1].ratio >= BAR else "FAIL"
        print(f"1 stream: at least {BAR:g}: {verdict}")
    sys.exit(1 if any(one.different for one in found.values()) else 0)


def prompts() -> Iterator[str]:
    """Functions of the held-out texts, each followed by the beginning of its copy."""
    text = (ROOT / "demo" / "heldout.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        for part in json.loads(line)["text"].split("\ndef ")[1:]:
            function = "def " + part.split("\n\n\n")[0].rstrip()
            if _SHORTEST <= len(function) <= _LONGEST:
                yield f"{function}\n\n\n{function[:40]}"


async def _measure(options: argparse.Namespace, work: Path) -> dict[int, Found]:
    texts = list(prompts())
    found = {streams: Found() for streams in options.streams}
    load = Load()
    with ExitStack() as servers:
        async with AsyncExitStack() as clients:
            pair: list[Client] = []
            for name, speculation in ((_PLAIN, None), (_LOOKED_UP, {"method": "prompt_lookup"})):
                server = servers.enter_context(_server(options.model, work, name, speculation))
                server.wait_ready()
                pair.append(await clients.enter_async_context(connected(server.target)))
            tokens = [await pair[0].tokenize(text) for text in texts]
            place = 0
            for round_ in range(options.rounds):
                for streams, one in found.items():
                    await asyncio.to_thread(load.wait_quiet, options.quiet_seconds)
                    chosen = [tokens[(place + index) % len(tokens)] for index in range(streams)]
                    place += streams
                    turn: dict[int, tuple[Stream, ...]] = {}
                    for index in (0, 1) if round_ % 2 == 0 else (1, 0):
                        sampling = exactly(options.new_tokens)
                        turn[index] = await pair[index].generate_all(chosen, sampling)
                    one.add(turn[0], turn[1])
    return found


def _server(model: str, work: Path, name: str, speculation: dict[str, Any] | None) -> ServerProcess:
    config = work / f"{name.replace(' ', '-')}.yaml"
    variant: dict[str, Any] = {"chain": [], "speculation": speculation}
    content = {"model": model, "store": str(work / "store"), "variants": {"baseline": variant}}
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    return ServerProcess(config, stderr=config.with_suffix(".log"))


if __name__ == "__main__":
    main()
