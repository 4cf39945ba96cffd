"""What a step tells of the next token: logits, where they are highest, and probabilities.

Owns the cut of a vocabulary into equal blocks, which lets a reader find the highest logit or draw a
token without going through the whole vocabulary, and the computation in numpy: what a packed graph
computes in ONNX Runtime (see ``artifacts.session``) is defined here. Knows nothing of steps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_IDEAL_WIDTH = 128  # a block that one look finds its highest in, and not too many of them


@dataclass(frozen=True, slots=True)
class Scores:
    """Of ``m`` wanted positions, row after row; of ``s`` of them the probabilities were asked for.

    Attributes:
        logits: (m, vocab) float32.
        best: (m,) int64, the token with the highest logit; of equals the lowest.
        best_logits: (m,) float32, its logit; not finite where the row is not.
        block_maxima: (m, blocks) float32, the highest logit of each block of the vocabulary.
        probabilities: (s, vocab) float32, softmax of logits over temperature.
        block_sums: (s, blocks) float32, the probability of each block.
    """

    logits: NDArray[np.float32]
    best: NDArray[np.int64]
    best_logits: NDArray[np.float32]
    block_maxima: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    block_sums: NDArray[np.float32]

    def part(self, positions: int, sampled: int) -> Scores:
        """The first of all."""
        return Scores(
            self.logits[:positions],
            self.best[:positions],
            self.best_logits[:positions],
            self.block_maxima[:positions],
            self.probabilities[:sampled],
            self.block_sums[:sampled],
        )

    def named(self) -> tuple[tuple[str, NDArray[Any]], ...]:
        """Every array with the name of the packed graph's output."""
        return (
            ("logits", self.logits),
            ("best", self.best),
            ("best_logits", self.best_logits),
            ("block_maxima", self.block_maxima),
            ("probabilities", self.probabilities),
            ("block_sums", self.block_sums),
        )


def empty_scores(positions: int, vocab_size: int, *, sampled: int) -> Scores:
    """Memory for that many positions, of which ``sampled`` have probabilities."""
    blocks = vocab_size // block_width(vocab_size)
    return Scores(
        np.zeros((positions, vocab_size), np.float32),
        np.zeros(positions, np.int64),
        np.zeros(positions, np.float32),
        np.zeros((positions, blocks), np.float32),
        np.zeros((sampled, vocab_size), np.float32),
        np.zeros((sampled, blocks), np.float32),
    )


@functools.cache
def block_width(vocab_size: int) -> int:
    """Tokens of a block: the divisor of the vocabulary that is nearest to 128 as a factor."""
    low = (d for d in range(1, math.isqrt(vocab_size) + 1) if vocab_size % d == 0)
    divisors = {divisor for d in low for divisor in (d, vocab_size // d)}
    return min(sorted(divisors), key=lambda d: abs(math.log(d / _IDEAL_WIDTH)))


def in_blocks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """View (n, vocab) as (n, blocks, width)."""
    count, vocab_size = values.shape
    width = block_width(vocab_size)
    return values.reshape(count, vocab_size // width, width)


def score(logits: NDArray[np.float32], temperatures: Sequence[float]) -> Scores:
    """Compute all of it from (m, vocab) logits.

    Args:
        logits: Left as they are.
        temperatures: Per row; 0 where no probabilities are asked for.
    """
    asked = [index for index, temperature in enumerate(temperatures) if temperature > 0.0]
    chosen = np.array([temperatures[index] for index in asked], np.float32)[:, None]
    probabilities = softmax(logits[asked], chosen)
    best = logits.argmax(axis=1)
    return Scores(
        logits,
        best,
        logits[np.arange(len(logits)), best],
        in_blocks(logits).max(axis=2),
        probabilities,
        in_blocks(probabilities).sum(axis=2),
    )


def softmax(
    logits: NDArray[np.float32], temperatures: NDArray[np.float32] | float
) -> NDArray[np.float32]:
    """Probabilities (n, vocab) of logits (n, vocab) over temperatures (n, 1)."""
    # Subtracting first keeps a tiny temperature from overflowing.
    shifted: NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
    shifted /= temperatures
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted
