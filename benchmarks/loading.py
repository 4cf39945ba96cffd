"""What loading a variant costs those who are being served: latencies meanwhile over those before.

``python -m benchmarks.loading [--rounds 5] [--seconds 60] [--rate 2]`` starts a real server with
one variant and asks it over gRPC at random moments (a Poisson process). Every round has two turns
under the same load: one in which nothing else happens, and one in which another variant is built,
loaded, warmed up and unloaded, over and over, each time by a chain that no store holds. The 95th
percentiles of both turns are divided within a round, since a shared machine drifts. The generator
takes precedence over the server where it may (as root): a client is elsewhere, and what this one
waits for the processor is no latency of the server's. Keep other work off the machine; what could
not be kept off is shown beside each turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import yaml

from protos import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from server.bench.attempt import Attempt, attempt
from server.comparison.load import Load
from server.comparison.server_process import ServerProcess

BAR = 1.5
FEWEST = 20
"""Figures of a turn that a 95th percentile needs; with fewer, their largest would be all it is."""

_SERVING, _LOADED = "serving", "loaded"
_TIMEOUT_S = 300.0
_QUIET_S = 60.0
_PRECEDENCE = -10  # a niceness
_FEWEST_IDS = 4096  # that every vocabulary has

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Turn:
    """What came in one turn.

    Attributes:
        first_token_s: Of each request that was due in it.
        gaps_s: Before each later token that came in it.
        failed: Requests that did not end well.
        others_cores: Cores that others used.
        loads: How many loads were completed.
    """

    first_token_s: Sequence[float]
    gaps_s: Sequence[float]
    failed: int
    others_cores: float
    loads: int = 0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A measure's ratios, one per round."""

    title: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        """With its spread, and beside the bar."""
        if not self.rounds:
            return f"{self.title}: too few figures; take more --seconds or a higher --rate"
        verdict = "pass" if self.median <= BAR else "FAIL"
        return (
            f"{self.title}: {self.median:.2f} ({min(self.rounds):.2f} to {max(self.rounds):.2f}, "
            f"{len(self.rounds)} rounds); at most {BAR:g}: {verdict}"
        )


def main() -> None:
    """Print one line per turn and one per measure."""
    parser = argparse.ArgumentParser(description="Latencies while another variant is loaded.")
    parser.add_argument("--model", default="demo", help="hub id, folder, or demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a turn, at least")
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--quiet-seconds", type=float, default=_QUIET_S)
    parser.add_argument("--out", type=Path, default=None, help="also write all figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rounds = asyncio.run(_measure(options, Path(work)))
    found = ratios(rounds)
    for ratio in found:
        print(ratio)
    if options.out is not None:
        content: dict[str, Any] = {"rounds": [[_figures(turn) for turn in pair] for pair in rounds]}
        content |= {ratio.title: ratio.rounds for ratio in found}
        options.out.write_text(json.dumps(content, indent=1), encoding="utf-8")
    sys.exit(1 if any(turn.failed for pair in rounds for turn in pair) else 0)


def ratios(rounds: Sequence[tuple[Turn, Turn]]) -> tuple[Ratio, Ratio]:
    """Meanwhile over before, of each round that has enough of both."""

    def of(title: str, values: str) -> Ratio:
        pairs = [tuple(getattr(turn, values) for turn in pair) for pair in rounds]
        return Ratio(
            title,
            tuple(
                p95(during) / p95(before)
                for before, during in pairs
                if min(len(before), len(during)) >= FEWEST
            ),
        )

    return (
        of("p95 time between tokens, while loading over before", "gaps_s"),
        of("p95 time to first token, while loading over before", "first_token_s"),
    )


def p95(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return float(np.quantile(values, 0.95))


def turn_of(
    attempts: Sequence[Attempt], spans: Sequence[Span], others_cores: float, loads: int = 0
) -> Turn:
    """What belongs to a turn: what was due, and what came, within its spans of time."""

    def within(moment_s: float) -> bool:
        return any(begin <= moment_s <= end for begin, end in spans)

    firsts, gaps = [], []
    for one in attempts:
        if one.first_token_s is not None and within(one.due_s):
            firsts.append(one.first_token_s)
        moments = [moment for moment, count in one.arrivals[1:] for _ in range(count)]
        gaps += [gap for gap, moment in zip(one.gaps_s, moments, strict=True) if within(moment)]
    return Turn(firsts, gaps, sum(one.status != "ok" for one in attempts), others_cores, loads)


def chains() -> Iterator[list[Any]]:
    """Chains that differ from the first stage on, so that each one is built from its beginning."""
    for number in range(1, 900):
        yield [
            {"prune": {"amount": number / 1000}},
            {"quantize": {"method": "weight_only", "bits": 4}},
        ]


async def _measure(options: argparse.Namespace, work: Path) -> list[tuple[Turn, Turn]]:
    config = work / "config.yaml"
    content = {"model": options.model, "store": str(work / "store"), "variants": {_SERVING: []}}
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    with ServerProcess(config, stderr=work / "server.log") as server:
        server.wait_ready()
        _take_precedence()  # now that the server cannot inherit it
        async with grpc.aio.insecure_channel(server.target) as channel:
            bench = _Bench(options, channel, server)
            return [await bench.round(number) for number in range(options.rounds)]


class _Bench:
    """One server under load."""

    def __init__(
        self, options: argparse.Namespace, channel: grpc.aio.Channel, server: ServerProcess
    ) -> None:
        self._options = options
        self._ask = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        self._admin: Any = admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
        self._server = server
        self._load = Load()
        self._chains = chains()
        self._rng = random.Random(0)  # noqa: S311 - no secret

    async def round(self, number: int) -> tuple[Turn, Turn]:
        """Both turns, the one without a load first."""
        await asyncio.to_thread(self._load.wait_quiet, self._options.quiet_seconds)
        pair = (await self._turn(loads=False), await self._turn(loads=True))
        for name, turn in zip(("before", "while loading"), pair, strict=True):
            print(f"round {number + 1}, {name}: {_line(turn)}", flush=True)
        return pair

    async def _turn(self, *, loads: bool) -> Turn:
        stop = asyncio.Event()
        others = self._load.span(self._own_s)
        steady = asyncio.create_task(self._steady(stop))
        begun_s = time.monotonic()
        spans: list[Span] = []
        if loads:
            while time.monotonic() < begun_s + self._options.seconds:
                spans.append(await self._load_once())
        else:
            await asyncio.sleep(self._options.seconds)
            spans.append((begun_s, time.monotonic()))
        stop.set()
        others_cores = others()
        return turn_of(await steady, spans, others_cores, len(spans) if loads else 0)

    async def _steady(self, stop: asyncio.Event) -> list[Attempt]:
        """Requests at random moments until told to stop; all of their answers."""
        asked: list[asyncio.Task[Attempt]] = []
        async with asyncio.TaskGroup() as group:
            due_s = time.monotonic()
            while not stop.is_set():
                due_s += self._rng.expovariate(self._options.rate)
                await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
                asked.append(group.create_task(self._attempt(due_s)))
        return [task.result() for task in asked]

    async def _attempt(self, due_s: float) -> Attempt:
        options = self._options
        prompt = [self._rng.randrange(_FEWEST_IDS) for _ in range(options.prompt_tokens)]
        request = inference_pb2.GenerateRequest(
            variant=_SERVING,
            token_ids=inference_pb2.TokenIds(ids=prompt),
            sampling=inference_pb2.SamplingParameters(
                max_tokens=options.new_tokens, ignore_eos=True, temperature=0
            ),
        )
        return await attempt(self._ask, request, _ignore, due_s=due_s, timeout_s=_TIMEOUT_S)

    async def _load_once(self) -> Span:
        """Build, load, warm up and unload the next chain; the span in which that was done."""
        begun_s = time.monotonic()
        chain_json = json.dumps(next(self._chains))
        request = admin_pb2.LoadVariantRequest(name=_LOADED, chain_json=chain_json)
        built = False
        async for view in self._admin.LoadVariant(request, timeout=_TIMEOUT_S):
            built = built or view.state == inference_pb2.VARIANT_STATE_BUILDING
        if view.state != inference_pb2.VARIANT_STATE_READY or not built:
            raise RuntimeError(
                f"The variant was not built and loaded: {view.error or 'a store hit'}."
            )
        ended_s = time.monotonic()
        unload = admin_pb2.UnloadVariantRequest(variant=_LOADED)
        await self._admin.UnloadVariant(unload, timeout=_TIMEOUT_S)
        return begun_s, ended_s

    def _own_s(self) -> float:
        """Processor seconds of the server, of all that it started, and of this process."""
        server = psutil.Process(self._server.process.pid)
        total = time.process_time()
        for process in (server, *server.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:  # its parent has its time
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total


def _take_precedence() -> None:
    """Run before others; also where Linux shares the processor out by session."""
    with contextlib.suppress(PermissionError):  # who leads a group has a session already
        os.setsid()  # else the whole terminal's session would take precedence
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _PRECEDENCE)
        Path("/proc/self/autogroup").write_text(str(_PRECEDENCE), encoding="ascii")
    except OSError as refusal:
        print(f"The generator takes no precedence: {refusal.strerror}.")


def _ignore(_: Attempt) -> None:
    """What became of a request is read from its task."""


def _line(turn: Turn) -> str:
    said = f"{len(turn.first_token_s)} requests, {len(turn.gaps_s)} gaps"
    if turn.loads:
        said += f", {turn.loads} loads"
    for title, values in (("first token", turn.first_token_s), ("between tokens", turn.gaps_s)):
        if len(values) >= FEWEST:
            said += f"; p95 {title} {p95(values) * 1e3:.1f} ms"
    said += f"; others used {turn.others_cores:.2f} cores"
    return f"{said}; {turn.failed} FAILED" if turn.failed else said


def _figures(turn: Turn) -> dict[str, Any]:
    return {
        "first_token_s": [*turn.first_token_s],
        "gaps_s": [*turn.gaps_s],
        "failed": turn.failed,
        "others_cores": turn.others_cores,
        "loads": turn.loads,
    }


if __name__ == "__main__":
    main()
