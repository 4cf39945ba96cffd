"""Drawing from a distribution over a vocabulary without sorting or partitioning it.

All filters are thresholds on the score, so a token is drawn from the whole and kept if it lies
above them; otherwise everything at or below it is excluded and the draw repeated (the rejection
scheme of FlashInfer, "Sorting-free GPU kernels for LLM sampling", 2025, on a CPU). Knows nothing of
requests.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_BLOCK = 128  # scores per block of the two-level searches
_ONES = np.ones(_BLOCK, np.float32)


def top_indices(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The ``count`` highest of (vocab,) scores, highest first, ties by index."""
    count = min(count, len(scores))
    if count == 0:
        return np.zeros(0, np.int64)
    candidates = np.flatnonzero(scores >= kth_largest(scores, count))
    # The bound keeps ties; a stable sort on the negated score leaves them in index order.
    order = np.argsort(-scores[candidates], kind="stable")[:count]
    return candidates[order]


def kth_largest(scores: NDArray[np.float32], k: int) -> np.float32:
    """The ``k``-th largest of (vocab,) scores, 1 <= k <= vocab."""
    blocks = len(scores) // _BLOCK
    if k <= blocks:
        # At least k scores reach the k-th largest block maximum, so nothing below it counts.
        maxima = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        bound = np.partition(maxima, blocks - k)[blocks - k]
        scores = scores[scores >= bound]
    where = len(scores) - k
    return np.float32(np.partition(scores, where)[where])


def draw(
    scores: NDArray[np.float32],
    *,
    top_k: int,
    top_p: float,
    min_p: float,
    numbers: Iterator[float],
) -> int:
    """Draw a token index from softmax(scores) restricted by top_k, then top_p, then min_p.

    ``scores`` (vocab,) are logits after temperature, shifted so that the highest is 0, and are
    overwritten. Tokens that tie with the last one inside a filter are inside too. Numbers in
    [0, 1) come from ``numbers``.
    """
    if 0 < top_k < len(scores):
        inside = np.flatnonzero(scores >= kth_largest(scores, top_k))
        return int(inside[_draw_nucleus(scores[inside], top_p, min_p, numbers)])
    return _draw_nucleus(scores, top_p, min_p, numbers)


def _draw_nucleus(
    scores: NDArray[np.float32], top_p: float, min_p: float, numbers: Iterator[float]
) -> int:
    """Draw from softmax(scores) restricted by top_p and min_p; overwrites ``scores``."""
    weights = np.exp(scores, out=scores)  # the highest is 1
    sums = _cumulated_blocks(weights)
    share = top_p * float(sums[-1])
    if min_p > 0.0:
        np.multiply(weights, weights >= np.float32(min_p), out=weights)
        sums = _cumulated_blocks(weights)
    while True:
        index = _draw_weighted(weights, sums, next(numbers))
        if top_p >= 1.0:
            return index
        above = weights > weights[index]
        # Mass strictly above the token, of the whole that top_p is a share of.
        if float(np.dot(weights, above)) < share:
            return index
        np.multiply(weights, above, out=weights)
        sums = _cumulated_blocks(weights)


def _cumulated_blocks(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Running sums of (n,) weights by block; the last block may be shorter, or empty."""
    blocks = len(weights) // _BLOCK
    body = blocks * _BLOCK
    sums = np.empty(blocks + 1, np.float64)
    # A product with ones is the fastest sum of rows; 128 addends lose nothing that matters.
    sums[:blocks] = weights[:body].reshape(blocks, _BLOCK) @ _ONES
    sums[blocks] = weights[body:].sum()
    return np.cumsum(sums, out=sums)


def _draw_weighted(
    weights: NDArray[np.float32], cumulated: NDArray[np.float64], number: float
) -> int:
    """Index drawn in proportion to (n,) weights by inversion, block by block."""
    target = number * cumulated[-1]
    block = int(np.searchsorted(cumulated, target, side="right"))
    if block == len(cumulated):
        # Rounding pointed past the end: the last block with weight is meant.
        block = int(np.searchsorted(cumulated, target, side="left"))
    inner = weights[block * _BLOCK : (block + 1) * _BLOCK]
    before = cumulated[block - 1] if block else 0.0
    within = np.cumsum(inner, dtype=np.float64)
    position = int(np.searchsorted(within, target - before, side="right"))
    if position >= len(inner) or inner[position] == 0.0:
        # Rounding pointed past the end of the block: its last token with weight is meant.
        position = int(np.flatnonzero(inner)[-1])
    return block * _BLOCK + position
