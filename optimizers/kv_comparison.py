"""How far a graph with an int8 cache is from the same graph with a float32 one.

Owns the schedule: documents side by side in chunks of changing size, one of them long, beside an
idle slot. Knows nothing of scales or of kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.manifest import GraphSpec
from artifacts.packed_session import PackedSession
from artifacts.reference import log_softmax
from artifacts.session import Row

_SLOTS = 4
LONGEST = 1024  # tokens of a document
_LENGTHS = ((3, LONGEST), (0, 200), (2, 33))  # slot and tokens of each document; slot 1 stays idle
_CHUNKS = (7, 1, 64, 13, 1, 128)
_SHOWN = 8  # logits at the end of each chunk; all of a large vocabulary would not fit


def open_compared(model: Path, graph: GraphSpec, *, threads: int | None) -> PackedSession:
    """Load a graph with room for the documents.

    Raises:
        SessionError: ONNX Runtime cannot load it.
    """
    length = min(LONGEST, graph.max_length)
    return PackedSession(model, graph, slots=_SLOTS, max_length=length, threads=threads)


def documents_of(
    windows: Sequence[NDArray[np.int64]], max_length: int
) -> list[tuple[int, NDArray[np.int64]]]:
    """Slots and documents to compare on, long ones put together of several windows."""
    text = np.concatenate(windows)
    found, begin = [], 0
    for slot, length in _LENGTHS:
        part = text[begin : begin + min(length, max_length)]
        begin += part.size
        found.append((slot, part))
    return found


def run_ragged(
    session: PackedSession, documents: Sequence[tuple[int, NDArray[np.int64]]]
) -> NDArray[np.float32]:
    """Run all documents side by side in chunks; log-probabilities (positions, vocab) of some."""
    return np.concatenate([log_softmax(session.step(rows).logits) for rows in _schedule(documents)])


def divergence(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Mean KL(first || second) in nats of log-probabilities (positions, vocab)."""
    return float(np.maximum((np.exp(first) * (first - second)).sum(axis=-1), 0.0).mean())


def _schedule(documents: Sequence[tuple[int, NDArray[np.int64]]]) -> Iterator[list[Row]]:
    done = [0] * len(documents)
    step = 0
    while any(begin < tokens.size for begin, (_, tokens) in zip(done, documents, strict=True)):
        rows = []
        for index, (slot, tokens) in enumerate(documents):
            count = _CHUNKS[(step + index) % len(_CHUNKS)]
            part = tokens[done[index] : done[index] + count]
            if part.size:
                rows.append(Row(slot, done[index], part, min(part.size, _SHOWN)))
                done[index] += part.size
        yield rows
        step += 1
