"""Rounding blocks to nearest: the very numbers of ONNX Runtime's quantizer, in less time.

ONNX Runtime's math library (MLAS) goes through a matrix value by value, 100 to 130 million of them
a second, and holds the interpreter's lock meanwhile; whole arrays at a time come to two or three
times that per core. A test compares both, bit by bit. Owns the arithmetic. Knows nothing of how
blocks are stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def round_to_nearest(
    matrix: NDArray[np.float32], bits: int, block_size: int, *, is_symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Round (N, K) in blocks along K.

    Gives the integers (N, blocks, block_size), 0 behind a row's end; the scales and the zero points
    (N, blocks). The symmetric form gives the larger end of a block the whole signed range (-8 and
    not +7).
    """
    rows, columns = matrix.shape
    count = -(-columns // block_size)
    missing = count * block_size - columns
    padded = np.pad(matrix, ((0, 0), (0, missing))) if missing else matrix
    # (block_size, N * blocks): what blocks have in common is then a row beside long rows.
    values = np.ascontiguousarray(padded.reshape(-1, block_size).T)
    low, high = values.min(axis=0), values.max(axis=0)
    largest = np.float32((1 << bits) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # of blocks of zeros, replaced at once
        if is_symmetric:
            middle = np.float32(1 << (bits - 1))
            scales = np.where(np.abs(high) > np.abs(low), high, low) / -middle
            zeros = np.full_like(scales, middle)
        else:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            scales = (high - low) / largest
            zeros = np.where(scales == 0, low, 0 - low / scales)
            zeros = _rounded(np.clip(zeros, 0, largest)).astype(np.float32)
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    values *= inverse
    values += zeros
    np.clip(values, 0, largest, out=values)
    integers = np.ascontiguousarray(_rounded(values).T).reshape(rows, count, block_size)
    if missing:
        integers[:, -1, block_size - missing :] = 0
    shape = rows, count
    return integers, scales.reshape(shape), zeros.astype(np.uint8).reshape(shape)


def _rounded(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round to the nearest integer, halves up; ``values`` are 0 to 255, and lost."""
    whole = values.astype(np.uint8)
    values -= whole
    whole += values >= np.float32(0.5)
    return whole
