"""Which products get 8 bits and which 4, so that the model changes least for the bytes spent.

Owns the measure and the choice. A product's sensitivity is the mean KL(float32 graph || the graph
with that one matrix rounded) on calibration text: forward passes alone, no gradients. Losses are
taken to add up, which holds for small ones; then who gets 8 bits is a knapsack, solved by dynamic
programming. Knows nothing of how a matrix is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from artifacts.reference import FIRST_POSITION
from optimizers.linears import Linear
from optimizers.probe import GraphProbe, Weights

FEW, MANY = 4, 8  # bits
_UNITS = 1 << 16  # of the knapsack's capacity
_OPERATIONS = 2e14  # of all trials together; minutes on two cores
_MOST_WINDOWS = 4  # more changed no choice on the demo model that mattered
_REFERENCE_BYTES = 256 << 20

Pretend = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""Rounds a matrix (N, K) to some bits and back."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What rounding one product costs.

    Attributes:
        weights: How many it has.
        losses: Bits to mean KL in nats.
    """

    weights: int
    losses: Mapping[int, float]


def measure(
    probe: GraphProbe,
    linears: Sequence[Linear],
    windows: Sequence[NDArray[np.int64]],
    pretend: Pretend,
    report: Callable[[float], None],
) -> list[Sensitivity]:
    """Round one product after the other, to 4 and to 8 bits, and compare predictions."""
    chosen = list(_chosen(linears, windows, probe.vocab_size))
    references = [_log_softmax(probe.run(*window, {})[0]) for window in chosen]
    found = []
    for index, linear in enumerate(linears):
        losses = {}
        for bits in (FEW, MANY):
            report((index + (bits == MANY) / 2) / len(linears))
            replaced = rounded(linear, bits, pretend)
            divergences = [
                _divergence(reference, _log_softmax(probe.run(*window, replaced)[0]))
                for window, reference in zip(chosen, references, strict=True)
            ]
            losses[bits] = float(np.concatenate(divergences).mean())
        found.append(Sensitivity(linear.rows * linear.columns, losses))
    return found


def choose(sensitivities: Sequence[Sensitivity], mean_bits: float) -> list[int]:
    """Give each product 4 or 8 bits, at most ``mean_bits`` per weight over all of them.

    The best choice, where the products' sizes have a large common divisor (as widths that are
    multiples of 64 do); else sizes are rounded up by less than a 65,536th of all weights each, so
    that the budget holds.
    """
    sizes = [one.weights for one in sensitivities]
    spare = math.floor(sum(sizes) * (mean_bits - FEW) / (MANY - FEW))  # weights that may have 8
    unit = max(math.gcd(*sizes), -(-sum(sizes) // _UNITS))
    gains = [max(one.losses[FEW] - one.losses[MANY], 0.0) for one in sensitivities]
    raised = _knapsack(gains, [-(-size // unit) for size in sizes], spare // unit)
    return [MANY if is_raised else FEW for is_raised in raised]


def rounded(linear: Linear, bits: int, pretend: Pretend) -> Weights:
    """A product's weight after a round trip, as it lies in the graph."""
    restored = pretend(np.ascontiguousarray(linear.matrix().T), bits)  # (N, K)
    array = restored if linear.is_transposed else restored.T
    return {linear.weight.name: np.ascontiguousarray(array, dtype=np.float32)}


def _knapsack(gains: Sequence[float], sizes: Sequence[int], capacity: int) -> list[bool]:
    """Which items to take for the largest sum of gains whose sizes fit; none that gains nothing."""
    best = np.zeros(capacity + 1)
    taken = np.zeros((len(gains), capacity + 1), np.bool_)
    for index, (gain, size) in enumerate(zip(gains, sizes, strict=True)):
        if size > capacity:
            continue
        with_it = best[: capacity + 1 - size] + gain
        taken[index, size:] = with_it > best[size:]
        best[size:] = np.maximum(best[size:], with_it)
    chosen, left = [False] * len(gains), capacity
    for index in reversed(range(len(gains))):
        if taken[index, left]:
            chosen[index] = True
            left -= sizes[index]
    return chosen


def _chosen(
    linears: Sequence[Linear], windows: Sequence[NDArray[np.int64]], vocabulary: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Some windows, and the positions of each that are compared."""
    weights = sum(linear.rows * linear.columns for linear in linears)
    trial = 2.0 * weights * windows[0].size * 2 * len(linears)
    count = int(np.clip(_OPERATIONS / trial, 1, _MOST_WINDOWS))
    for window in windows[:count]:
        compared = np.arange(min(FIRST_POSITION, window.size - 1), window.size)
        most = max(_REFERENCE_BYTES // (8 * vocabulary * count), 1)
        yield window, np.ascontiguousarray(compared[:: -(-compared.size // most)])


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """In float64: what 8 bits lose is close to what float32 rounds."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _divergence(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    divergence: NDArray[np.float64] = (np.exp(first) * (first - second)).sum(axis=-1)
    return divergence
