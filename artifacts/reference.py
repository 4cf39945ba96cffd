"""The original model's answers on a text, kept so that every variant is compared with the same.

Owns which tokens and positions are compared, and the stored form: token ids, and the original's
log-probabilities over its whole vocabulary in float16, renormalised when read so that rounding
them costs less than 1e-6 nats. Knows nothing of how a model is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FIRST_POSITION = 16
"""Positions before this one say more about the missing context than about the model."""
SHORTEST = 2 * FIRST_POSITION  # tokens; a shorter document compares too little
USER_WINDOW = 256  # tokens of one document
SAMPLED_WINDOW = 96  # the same, of text that the original has to write first
LARGEST_BYTES = 768 << 20  # of stored log-probabilities
_TOKENS = "tokens.npy"
_LENGTHS = "lengths.npy"
_LOG_PROBS = "log_probs.npy"


class Scorer(Protocol):
    """Anything that gives logits: a session, or a torch module."""

    def logits(self, tokens: NDArray[np.int64], first: int) -> NDArray[np.float32]:
        """Logits after each of ``tokens`` (n,) from index ``first`` on: (n - first, vocab)."""
        ...


@dataclass(frozen=True, slots=True)
class Reference:
    """Documents and what the original makes of them.

    Attributes:
        documents: Token ids of each; its last token is only ever a target.
        log_probs: (positions of all documents, vocab) float16.
    """

    documents: tuple[NDArray[np.int64], ...]
    log_probs: NDArray[np.float16]

    @property
    def positions(self) -> int:
        """How many predictions are compared."""
        return int(self.log_probs.shape[0])

    def parts(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Each document with its log-probabilities (positions, vocab)."""
        start = 0
        for document in self.documents:
            count = document.size - 1 - FIRST_POSITION
            yield document, self.log_probs[start : start + count]
            start += count


def token_budget(parameters: int, window: int) -> int:
    """How many tokens to compare: fewer for larger models, so that measuring stays quick.

    Never so few that a 99th percentile would rest on less than 2,000 positions, and never more
    than 32 windows.
    """
    return int(min(max(3e11 / parameters, 2500), 32 * window))


def choose_windows(
    documents: Sequence[Sequence[int]], *, window: int, tokens: int, vocabulary: int
) -> tuple[NDArray[np.int64], ...]:
    """Cut documents into windows and take the first of each, then the second of each, and so on.

    Args:
        documents: Token ids.
        window: Tokens of one window, at most.
        tokens: Of all windows, at most; also bounded by what may be stored.
        vocabulary: Size of the original's vocabulary.
    """
    positions = LARGEST_BYTES // (2 * vocabulary)
    chosen: list[NDArray[np.int64]] = []
    for start in range(0, max(map(len, documents), default=0), window):
        for document in documents:
            part = np.asarray(document[start : start + window], dtype=np.int64)
            if part.size < SHORTEST:
                continue
            tokens -= part.size
            positions -= part.size - 1 - FIRST_POSITION
            if min(tokens, positions) < 0:
                return tuple(chosen)
            chosen.append(part)
    return tuple(chosen)


def make_reference(
    folder: Path, documents: Sequence[NDArray[np.int64]], original: Scorer, *, vocabulary: int
) -> None:
    """Have the original score the documents, and write the reference into a folder."""
    count = sum(document.size - 1 - FIRST_POSITION for document in documents)
    log_probs = np.lib.format.open_memmap(
        folder / _LOG_PROBS, mode="w+", dtype=np.float16, shape=(count, vocabulary)
    )
    start = 0
    for document in documents:
        logits = original.logits(document[:-1], FIRST_POSITION)
        log_probs[start : start + logits.shape[0]] = log_softmax(logits).astype(np.float16)
        start += logits.shape[0]
    log_probs.flush()
    np.save(folder / _TOKENS, np.concatenate(documents))
    np.save(folder / _LENGTHS, np.array([document.size for document in documents]))


def load_reference(folder: Path) -> Reference:
    """Read what ``make_reference`` wrote; log-probabilities stay on disk until they are used."""
    tokens = np.load(folder / _TOKENS, allow_pickle=False)
    lengths = np.load(folder / _LENGTHS, allow_pickle=False)
    documents = np.split(tokens, np.cumsum(lengths)[:-1])
    log_probs = np.load(folder / _LOG_PROBS, mmap_mode="r", allow_pickle=False)
    return Reference(documents=tuple(documents), log_probs=log_probs)


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Natural log-probabilities over the last axis."""
    shifted = logits.astype(np.float32)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def in_chunks(count: int, size: int) -> Iterable[slice]:
    """Runs of at most ``size`` positions, so that no temporary grows with the document."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
