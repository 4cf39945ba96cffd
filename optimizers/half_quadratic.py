"""HQQ: scales of low-bit blocks that leave many weights nearly exact, and a few further off.

Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023
(https://mobiusml.github.io/hqq_blog/): the error of a block is measured by the sum of |w - w_q|^p
with p < 1, which outliers do not dominate, and is split into two problems with closed forms, which
take turns: how much of each weight's error is let stand, and the best grid for the rest.

ONNX Runtime's own (``HQQWeightOnlyQuantizer``) moves the zero point, as the paper does, and leaves
it a fraction. ``MatMulNBits`` has no fast kernel for fractions, and rounded they are those of
rounding to nearest again: on the demo model's layers in blocks of 32 its sum is 26.5 (per thousand
weights) with nearest, 25.1 with a fraction, 26.5 with the fraction rounded. So here the zero point
stays whole and the scale is moved instead: 25.0. Works on numbers. Knows nothing of layouts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NORM = 0.7  # p
_ROUNDS = 20
_SHARPNESS = 10.0  # of the split's first round, for errors in steps of the scale
_SHARPER = 1.01  # from round to round
_TINY = np.finfo(np.float32).tiny


def fit(
    weights: NDArray[np.float32],
    scales: NDArray[np.float32],
    zero: NDArray[np.float32],
    *,
    largest: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Move scales so that each block's sum of |w - w_q|^p falls; never so that it rises.

    Args:
        weights: (blocks, block_size).
        scales: (blocks, 1), to begin with.
        zero: (blocks, 1) whole zero points, which stay.
        largest: Of the integers, which begin at 0.

    Returns:
        The integers (blocks, block_size), as floats, and the scales (blocks, 1).
    """
    scales = np.where(scales == 0, np.float32(1), scales)  # of a block of nothing but zeros
    best, best_scales = _rounded(weights, scales, zero, largest), scales
    least = _sums(weights - (best - zero) * scales)
    sharpness = _SHARPNESS
    values = best
    for _ in range(_ROUNDS):
        centered = values - zero
        off = weights - centered * scales
        # In steps of the scale: weights are far smaller than 1, and p < 1 would shrink all away.
        kept = weights - _shrink(off / scales, sharpness) * scales
        power = np.square(centered).sum(axis=1, keepdims=True)
        fitted = (centered * kept).sum(axis=1, keepdims=True) / np.maximum(power, _TINY)
        # A symmetric block's scale may be negative; it keeps its sign.
        scales = np.where(fitted * scales > 0, fitted, scales)
        values = _rounded(weights, scales, zero, largest)
        sums = _sums(weights - (values - zero) * scales)
        better = sums < least
        least = np.where(better, sums, least)
        best = np.where(better, values, best)
        best_scales = np.where(better, scales, best_scales)
        sharpness *= _SHARPER
    return best, best_scales


def _rounded(
    weights: NDArray[np.float32],
    scales: NDArray[np.float32],
    zero: NDArray[np.float32],
    largest: int,
) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.clip(np.rint(weights / scales) + zero, 0, largest)
    return values


def _sums(errors: NDArray[np.float32]) -> NDArray[np.float32]:
    sums: NDArray[np.float32] = (np.abs(errors) ** NORM).sum(axis=1, keepdims=True)
    return sums


def _shrink(errors: NDArray[np.floating], sharpness: float) -> NDArray[np.float32]:
    """Soft thresholding for |x|^p: small errors go, large ones nearly stay."""
    size = np.abs(errors)
    shrunk: NDArray[np.float32] = np.sign(errors) * np.maximum(
        size - np.power(size + 1e-8, NORM - 1) / sharpness, 0
    )
    return shrunk
