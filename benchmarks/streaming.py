"""How long it takes from a model's weights to the first token of an int4 variant, and how much.

``python -m benchmarks.streaming [--rounds 3]`` writes random float16 weights in the shape of
Qwen2.5-0.5B (or ``--shape``), and starts a real server with one int4 variant and no budget, from an
empty store each time. Prints the seconds from the start of the process to the first token over
gRPC, where they went, the memory of each process at its peak, and the largest file that was written
besides the artifact. The exit code is 1 where a bar is missed. Keep other work off the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from benchmarks.contenders import ROOT
from benchmarks.footprint import Footprint
from benchmarks.run_file import write_run
from benchmarks.shapes import SHAPES, make_model
from server.comparison.load import Load
from server.comparison.server_process import ServerProcess
from server.comparison.streams import connected, exactly

BAR_S = 15.0
BAR_MEMORY = 1.5  # of the weights in float16
_HALF_BYTES = 2
_QUIET_S = 60.0
_PROMPT = tuple(range(1, 17))
_MB = 1e6


@dataclass(frozen=True, slots=True)
class Round:
    """What one start took.

    Attributes:
        first_token_s: From the start of the process.
        steps_s: Of that, by step of the build.
        peak_bytes: By process, the most memory.
        together_bytes: The most that all of them had at one moment.
        artifact_bytes: Of all its files.
        other_file_bytes: The largest file besides.
    """

    first_token_s: float
    steps_s: dict[str, float]
    peak_bytes: dict[str, int]
    together_bytes: int
    artifact_bytes: int
    other_file_bytes: int


def main() -> None:
    """Print a table; the exit code is 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description="From safetensors to the first int4 token.")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "bench-models")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--quiet-seconds", type=float, default=_QUIET_S)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    model = make_model(options.models, shape, dtype="float16")
    load, rounds = Load(), []
    for _ in range(options.rounds):
        load.wait_quiet(options.quiet_seconds)
        with tempfile.TemporaryDirectory(dir=options.models) as work:
            rounds.append(asyncio.run(_measure(model, Path(work))))
        _tell(rounds[-1])
    created = datetime.now(UTC)
    bars = _bars(rounds, shape.parameters * _HALF_BYTES)
    found = {
        "shape": asdict(shape),
        "rounds": [asdict(one) for one in rounds],
        "bars": [asdict(bar) for bar in bars],
    }
    told = [f"{bar.title}: {bar.found:.2f}, below {bar.limit:g}: {bar.verdict}" for bar in bars]
    print("\n".join(told))
    write_run(options.results, "streaming", created, found, "\n".join(told))
    sys.exit(0 if all(bar.is_kept for bar in bars) else 1)


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure and what it must be below."""

    title: str
    found: float
    limit: float

    @property
    def is_kept(self) -> bool:
        """Whether it is."""
        return self.found < self.limit

    @property
    def verdict(self) -> str:
        """The same as a word."""
        return "pass" if self.is_kept else "FAIL"


def _bars(rounds: Sequence[Round], half_bytes: int) -> tuple[Bar, ...]:
    seconds = statistics.median(one.first_token_s for one in rounds)
    peak = max(max(one.peak_bytes.values()) for one in rounds)
    return (
        Bar("seconds to the first token (median)", seconds, BAR_S),
        Bar("largest process over the weights in float16 (worst)", peak / half_bytes, BAR_MEMORY),
    )


async def _measure(model: Path, work: Path) -> Round:
    config = work / "config.yaml"
    content = {
        "model": str(model),
        "store": str(work / "store"),
        "variants": {"int4": [{"quantize": {"method": "weight_only", "bits": 4}}]},
    }
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    begun_s = time.monotonic()
    with (
        ServerProcess(config, stderr=work / "server.log") as server,
        Footprint(server.process.pid, work / "store") as footprint,
    ):
        await asyncio.to_thread(server.wait_ready)
        async with connected(server.target) as client:
            await client.generate(_PROMPT, exactly(1))
            first_token_s = time.monotonic() - begun_s
            variant = await client.describe()
        return Round(
            first_token_s=first_token_s,
            steps_s={stage.stage: stage.seconds for stage in variant.lineage},
            peak_bytes=dict(footprint.peaks),
            together_bytes=footprint.together,
            artifact_bytes=variant.size_bytes,
            other_file_bytes=footprint.largest_file(but=work / "store" / "blobs"),
        )


def _tell(one: Round) -> None:
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in one.steps_s.items())
    peaks = ", ".join(f"{name} {size / _MB:.0f} MB" for name, size in one.peak_bytes.items())
    print(
        f"first token after {one.first_token_s:.1f} s ({steps}); peaks: {peaks}, together "
        f"{one.together_bytes / _MB:.0f} MB; artifact {one.artifact_bytes / _MB:.0f} MB, largest "
        f"other file {one.other_file_bytes / _MB:.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
