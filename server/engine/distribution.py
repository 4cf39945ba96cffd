"""Drawing from a distribution over a vocabulary without sorting or partitioning it.

Scores and weights come in equal blocks with what is known of each block (its highest score, its sum
of weights), so that most blocks are never looked at. All filters are thresholds, so a token is
drawn from the whole and kept if it lies above them; otherwise everything at or below it is excluded
and the draw repeated (the rejection scheme of FlashInfer, "Sorting-free GPU kernels for LLM
sampling", 2025, on a CPU). Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def top_tokens(
    scores: NDArray[np.float32], maxima: NDArray[np.float32], count: int
) -> NDArray[np.int64]:
    """The tokens, ascending, whose score reaches the ``count``-th highest; ties are inside.

    Args:
        scores: (vocab,), not NaN.
        maxima: (blocks,), the highest score of each equal part of the vocabulary.
        count: 1..vocab.
    """
    blocks = len(maxima)
    width = len(scores) // blocks
    if count <= blocks:
        # At least count scores reach the count-th largest maximum, so nothing below it counts.
        bound = np.partition(maxima, blocks - count)[blocks - count]
        chosen = np.flatnonzero(maxima >= bound)
        lines, places = np.nonzero(scores.reshape(blocks, width)[chosen] >= bound)
        near = chosen[lines] * width + places
    else:
        near = np.arange(len(scores))
    values = scores[near]
    where = len(values) - count
    inside: NDArray[np.int64] = near[values >= np.partition(values, where)[where]]
    return inside


def top_indices(
    scores: NDArray[np.float32], maxima: NDArray[np.float32], count: int
) -> NDArray[np.int64]:
    """The ``count`` highest of (vocab,) scores, highest first, ties by index."""
    count = min(count, len(scores))
    if count == 0:
        return np.zeros(0, np.int64)
    candidates = top_tokens(scores, maxima, count)
    # A stable sort on the negated score leaves ties in index order.
    order = np.argsort(-scores[candidates], kind="stable")[:count]
    return candidates[order]


def draw(
    weights: NDArray[np.float32],
    sums: NDArray[np.float32],
    *,
    top_p: float,
    min_p: float,
    numbers: Iterator[float],
) -> int:
    """Draw a token in proportion to its weight, restricted by top_p, then min_p.

    Tokens that tie with the last one inside a filter are inside too.

    Args:
        weights: (vocab,) finite, at least one above 0; overwritten.
        sums: (blocks,), the weight of each equal part of the vocabulary.
        top_p: Share of all weights that the likeliest tokens must come to.
        min_p: Least weight, as a share of the largest.
        numbers: Gives numbers in [0, 1).
    """
    lines = weights.reshape(len(sums), -1)
    cumulated = np.cumsum(sums, dtype=np.float64)
    share = top_p * float(cumulated[-1])
    if min_p > 0.0:
        np.multiply(lines, lines >= np.float32(min_p) * lines.max(), out=lines)
        cumulated = _cumulated(lines)
    while True:
        index = _draw_weighted(lines, cumulated, next(numbers))
        if top_p >= 1.0:
            return index
        above = weights > weights[index]
        # Weight strictly above the token, of the whole that top_p is a share of.
        if float(np.dot(weights, above)) < share:
            return index
        np.multiply(weights, above, out=weights)
        cumulated = _cumulated(lines)


def keep_typical(weights: NDArray[np.float32], share: float) -> None:
    """Set to 0 all but the tokens whose surprise is nearest to the expected one.

    Meister et al., "Locally typical sampling", TACL 2023: tokens by how far their surprise lies
    from the entropy, until their probabilities come to ``share``. Those that tie with the last one
    are kept too.

    Args:
        weights: (vocab,) finite, at least one above 0; overwritten.
        share: Above 0, at most 1.
    """
    likely = np.flatnonzero(weights)
    probabilities = weights[likely] / weights[likely].sum(dtype=np.float64)
    surprise = -np.log(probabilities)
    deviation = np.abs(surprise - np.dot(probabilities, surprise))
    # Halved about its mean until one value is left: whole vocabularies are not sorted.
    inside, missing = np.arange(len(likely)), share
    while True:
        values = deviation[inside]
        near = values <= values.mean()
        mass = float(probabilities[inside[near]].sum())
        if near.all():
            bound = values.max()
            break
        if mass >= missing:
            inside = inside[near]
        else:
            inside, missing = inside[~near], missing - mass
    weights[likely[deviation > bound]] = 0.0


def block_sums(lines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of (blocks, width) weights by block."""
    # A product with ones is the fastest sum of rows.
    return lines @ np.ones(lines.shape[1], np.float32)


def _cumulated(lines: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.cumsum(block_sums(lines), dtype=np.float64)


def _draw_weighted(
    lines: NDArray[np.float32], cumulated: NDArray[np.float64], number: float
) -> int:
    """Index drawn in proportion to (blocks, width) weights by inversion, block by block."""
    target = number * cumulated[-1]
    block = int(np.searchsorted(cumulated, target, side="right"))
    if block == len(cumulated):
        # Rounding pointed past the end: the last block with weight is meant.
        block = int(np.searchsorted(cumulated, target, side="left"))
    inner = lines[block]
    before = cumulated[block - 1] if block else 0.0
    within = np.cumsum(inner, dtype=np.float64)
    position = int(np.searchsorted(within, target - before, side="right"))
    if position >= len(inner) or inner[position] == 0.0:
        # Rounding pointed past the end of the block: its last token with weight is meant.
        position = int(np.flatnonzero(inner)[-1])
    return block * int(lines.shape[1]) + position
