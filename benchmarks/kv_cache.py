"""What an int8 key-value cache costs or gains in speed, by the length of what it holds.

``python -m benchmarks.kv_cache [--model FOLDER] [--rows 4]`` exports a model (by default one of the
zoo's shape with heads of 64 and a context of 8,192), gives it both caches, and prints the
milliseconds of a step that appends one token to each row, medians of steps taken in turns, one
line per length. Random tokens: speed does not depend on them. Keep other work off the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.manifest import GraphSpec
from artifacts.packed_session import PackedSession
from artifacts.session import Row
from benchmarks import zoo
from optimizers import linears
from optimizers.attention import read_attentions
from optimizers.export import export
from optimizers.kv_graph import quantize_cache
from optimizers.kv_scales import find_scales

LENGTHS = (128, 512, 2048, 8000)
STEPS = 40  # of each cache and length
_CHUNK = 256
_WINDOWS = 8  # of random tokens to calibrate on
_SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}


def main() -> None:
    """Print one line per length."""
    parser = argparse.ArgumentParser(description="Decoding with a cache in float32 and in int8.")
    parser.add_argument("--model", type=Path, default=None, help="a Hugging Face folder")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = options.model or _write_model(Path(work) / "model")
        caches = _caches(folder, Path(work), rows=options.rows, threads=options.threads)
        sizes = " and ".join(f"{one.kv_bytes_per_token}" for one in caches.values())
        print(f"{options.rows} rows; {sizes} bytes per token")
        print("| tokens per row | float32, ms | int8, ms | int8 / float32 |\n|---|---|---|---|")
        for length in LENGTHS:
            if length + STEPS < next(iter(caches.values())).max_length:
                print(_line(caches, length, options.rows), flush=True)


def _write_model(folder: Path) -> Path:
    zoo.write_tokenizer(folder)
    zoo.make_model("llama", **_SHAPE).save_pretrained(folder)
    return folder


def _caches(
    folder: Path, work: Path, *, rows: int, threads: int | None
) -> dict[str, PackedSession]:
    """The same graph with either cache, loaded."""
    exported = export(folder, work, progress=lambda *_: None)
    model, graph = exported.model, exported.graph
    target = work / "int8"
    target.mkdir()

    def load(path: Path, spec: GraphSpec) -> PackedSession:
        length = min(spec.max_length, max(LENGTHS) + STEPS + 1)
        return PackedSession(path, spec, slots=rows, max_length=length, threads=threads)

    float32 = load(model, graph)
    rng = np.random.default_rng(0)
    windows = list(rng.integers(0, graph.vocab_size, (_WINDOWS, _CHUNK)))
    edited = linears.load(model.parent)
    attentions = read_attentions(edited, graph)
    scales = find_scales(float32, attentions, windows, lambda _: None)
    served = quantize_cache(edited, graph, attentions, scales)
    linears.save(edited, target)
    return {"float32": float32, "int8": load(target / model.name, served)}


def _line(caches: dict[str, PackedSession], length: int, rows: int) -> str:
    rng = np.random.default_rng(length)
    vocabulary = next(iter(caches.values())).vocab_size
    for session in caches.values():
        for start in range(0, length, _CHUNK):
            tokens = rng.integers(0, vocabulary, min(_CHUNK, length - start))
            session.step([Row(slot, start, tokens, 0) for slot in range(rows)])
    taken: dict[str, list[float]] = {name: [] for name in caches}
    for step in range(STEPS):
        token = rng.integers(0, vocabulary, 1)
        for name, session in caches.items():
            began = time.perf_counter()
            session.step([Row(slot, length + step, token, 1) for slot in range(rows)])
            taken[name].append(time.perf_counter() - began)
    float32, int8 = (statistics.median(times) * 1e3 for times in taken.values())
    return f"| {length} | {float32:.2f} | {int8:.2f} | {int8 / float32:.2f} |"


if __name__ == "__main__":
    main()
