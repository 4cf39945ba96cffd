"""Where the time of one step goes: ONNX Runtime's own profile of an artifact's graph.

Takes a step of so many streams, or of one prompt, some times over, and adds up the kernels by
operator and by the shape of the weights, beside what they read of these per second. Owns that
arithmetic. Knows nothing of the engine: what Python does between two steps is not part of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from artifacts.kv_cache import KvCache
from artifacts.machine import usable_cores
from artifacts.manifest import GraphSpec
from artifacts.packed_graph import PackedGraph
from artifacts.runtime import Threads
from artifacts.session import Row
from artifacts.store import Store
from benchmarks.bandwidth import products, read_bandwidth

_KERNEL = "_kernel_time"
_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Work:
    """What is computed in every step of a profile.

    Attributes:
        streams: Rows of the step.
        tokens: Of each row.
        context: Tokens that each row has in the cache already.
    """

    streams: int
    tokens: int
    context: int

    def rows(self) -> list[Row]:
        """The step, always the same."""
        ids = np.arange(self.tokens, dtype=np.int64) + 1
        return [Row(slot, self.context, ids, logits=1) for slot in range(self.streams)]


@dataclass(frozen=True, slots=True)
class Part:
    """Kernels of one kind.

    Attributes:
        title: The operator, and of products the shape (K, N) of the weights.
        seconds: Of a step, the median.
        calls: In a step.
        weight_bytes: That it reads of weights in a step.
    """

    title: str
    seconds: float
    calls: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Profile:
    """A step's time, and what it consists of; the slowest part first."""

    seconds: float
    parts: list[Part]


def profile(model: Path, spec: GraphSpec, work: Work, *, threads: int, steps: int) -> Profile:
    """Run steps under ONNX Runtime's profiler.

    Args:
        model: A packed graph's file.
        spec: How it is run.
        work: What each step computes.
        threads: Who computes.
        steps: To take the median of.
    """
    length = work.context + work.tokens
    cache = KvCache(spec.layers, slots=work.streams, max_length=2 * length)
    lengths = np.zeros(work.streams, np.int32)
    with tempfile.TemporaryDirectory() as folder:
        graph = PackedGraph(
            model,
            cache,
            lengths,
            max_length=length,
            vocab_size=spec.vocab_size,
            threads=Threads(count=threads),
            profile_into=Path(folder) / "step",
        )
        rows = work.rows()
        for _ in range(_WARM_UP + steps):
            graph.run(rows, ort.RunOptions())
        events = json.loads(graph.end_profile().read_text(encoding="utf-8"))
    return digest(events, products(model), steps=steps)


def digest(
    events: Iterable[Mapping[str, Any]], weights: Mapping[str, tuple[str, int]], *, steps: int
) -> Profile:
    """Add up a profile's events.

    Args:
        events: Of ONNX Runtime's profiler.
        weights: Of each product by its node's name, the shape of its weights and their bytes.
        steps: How many of the last runs count.
    """
    runs, kernels = [], []
    for event in events:
        if event.get("name") == "model_run":
            runs.append(event)
        elif event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            kernels.append(event)
    runs = sorted(runs, key=lambda run: run["ts"])[-steps:]
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(runs))
    calls: dict[str, int] = defaultdict(int)
    reads: dict[str, int] = defaultdict(int)
    for kernel in kernels:
        place = next((i for i, run in enumerate(runs) if _within(kernel, run)), None)
        if place is None:
            continue  # of the warm-up
        shape, size = weights.get(kernel["name"].removesuffix(_KERNEL), ("", 0))
        title = f"{kernel['args']['op_name']} {shape}".strip()
        seconds[title][place] += kernel["dur"] / 1e6
        if place == 0:
            calls[title] += 1
            reads[title] += size
    parts = [
        Part(title, median(each), calls[title], reads[title]) for title, each in seconds.items()
    ]
    return Profile(
        seconds=median(run["dur"] / 1e6 for run in runs),
        parts=sorted(parts, key=lambda part: -part.seconds),
    )


def _within(kernel: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    return bool(run["ts"] <= kernel["ts"] < run["ts"] + run["dur"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the profile of each size of a step; the process's exit code."""
    options = _options(arguments)
    console = Console()
    found = [path.stem for path in (options.store / "manifests").glob(f"{options.artifact}*.json")]
    if len(found) != 1:
        console.print(f"{len(found)} artifacts of {options.store} begin with {options.artifact!r}.")
        return 2
    stored = Store(options.store).open(found[0])
    model, spec = stored.path("model.onnx"), stored.manifest.graph
    memory = read_bandwidth(options.threads)
    console.print(f"reading memory: {memory / 1e9:.1f} GB/s with {options.threads} threads")
    works = [Work(count, 1, options.context) for count in options.streams]
    if options.prompt:
        works.append(Work(1, options.prompt, 0))
    for work in works:
        path = model
        if work.tokens > 1 and spec.forms is not None:
            path = model.with_name(spec.forms.prompts)
        console.print(
            _table(work, profile(path, spec, work, threads=options.threads, steps=options.steps))
        )
    return 0


def _table(work: Work, found: Profile) -> Table:
    table = Table(
        title=f"{work.streams} x {work.tokens} tokens behind {work.context}: "
        f"{found.seconds * 1e3:.1f} ms",
        title_justify="left",
    )
    table.add_column("operator, shape of weights")
    for name in ("calls", "ms", "share", "weights, MB", "GB/s"):
        table.add_column(name, justify="right")
    for part in found.parts:
        share = part.seconds / found.seconds
        if share < _SHOWN:
            continue
        read = part.weight_bytes
        table.add_row(
            part.title,
            str(part.calls),
            f"{part.seconds * 1e3:.2f}",
            f"{share:.1%}",
            f"{read / 1e6:.1f}" if read else "",
            f"{read / part.seconds / 1e9:.1f}" if read else "",
        )
    between = found.seconds - sum(part.seconds for part in found.parts)
    table.add_row(
        "between kernels", "", f"{between * 1e3:.2f}", f"{between / found.seconds:.1%}", "", ""
    )
    return table


_SHOWN = 0.004


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_profile", description=__doc__)
    parser.add_argument("store", type=Path, help="the folder of artifacts")
    parser.add_argument("artifact", help="the beginning of its digest")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 16])
    parser.add_argument("--prompt", type=int, default=256, help="tokens; 0 for none")
    parser.add_argument("--context", type=int, default=64, help="tokens before a generated one")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: all cores")
    parser.add_argument("--steps", type=int, default=20, help="to take the median of")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
