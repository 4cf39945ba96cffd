"""GPTQ: low-bit weights whose rounding errors the weights behind them make up for.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
2022 (https://arxiv.org/abs/2210.17323): inputs are taken from the first to the last, each is
rounded for all outputs at once, and what that does to the outputs on the calibration text is made
up for, as far as least squares can, by the inputs that are still to come. Works on one matrix; a
block's grid is laid when its first input is reached. Inputs stay in their order, since another one
(``g_idx``) would cost ``MatMulNBits`` its fast kernels. A weight that is zero stays so, and what
the corrections would have made of it is made up for like a rounding error.

ONNX Runtime's own (``neural_compressor.weight_only.gptq``) gives rounded floats and not the grid
that they lie on, which its caller then guesses from their range; it lays the grids inside a run of
128 columns before those are corrected, asks for 4 bits, and loses zeros. Knows nothing of graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optimizers import obs
from optimizers.block_quantization import Blocks, join_blocks, pack, round_blocks
from optimizers.rows import iterate_blocks

if TYPE_CHECKING:
    from optimizers.lazy_columns import Columns
    from optimizers.quantized_graph import Quantizer

_COLUMNS = 128  # whose corrections reach the rest of the matrix together
_ROWS_AT_ONCE = 1 << 22  # elements of the matrix that are worked on together


class Fitted:
    """Quantizes the products of one input, whose text (tokens, K) comes in parts."""

    def __init__(self, inputs: Sequence[NDArray[np.float32]]) -> None:
        self._inputs = inputs

    def in_blocks(self, block_size: int, *, is_symmetric: bool) -> Quantizer:
        """A quantizer of matrices (N, K) whose product with the inputs is wanted."""

        def quantizer(matrix: NDArray[np.float32], bits: int, *, whole: bool) -> Blocks:
            del whole  # tables are looked up in, so nothing flows into them
            return quantize(
                matrix, self._factor, bits=bits, block_size=block_size, is_symmetric=is_symmetric
            )

        return quantizer

    def columns(self, matrix: NDArray[np.float32]) -> Columns:
        """Round a matrix (K, N) to signed bytes with one scale (N,) per column."""
        height, count = matrix.shape
        laid = quantize(matrix.T, self._factor, bits=8, block_size=height, is_symmetric=True)
        values = laid.packed.reshape(count, height) ^ 128  # 128 is zero; signed, 0 is
        return np.ascontiguousarray(values.view(np.int8).T), laid.scales[:, 0]

    @cached_property
    def _factor(self) -> NDArray[np.float32]:
        import torch

        hessian = sum(obs.hessian(torch.from_numpy(part)) for part in self._inputs)
        factor: NDArray[np.float32] = obs.inverse_factor(hessian).float().numpy()
        return factor


def quantize(
    matrix: NDArray[np.float32],
    factor: NDArray[np.float32],
    *,
    bits: int,
    block_size: int,
    is_symmetric: bool,
) -> Blocks:
    """Quantize a matrix (N, K), K the inputs, in blocks along K.

    Args:
        matrix: ``outputs = inputs @ matrix.T``.
        factor: (K, K), what ``obs.inverse_factor`` makes of the inputs' ``X^T X``.
        bits: Of an integer, 4 or 8.
        block_size: Weights that share a scale.
        is_symmetric: Whether there are no zero points.
    """
    rows, columns = matrix.shape
    chunk = max(1, _ROWS_AT_ONCE // columns)
    laid = _Grid(bits, block_size, is_symmetric)
    return join_blocks(
        [_quantize(matrix[part], factor, laid) for part in iterate_blocks(rows, chunk)]
    )


@dataclass(frozen=True, slots=True)
class _Grid:
    """How blocks are laid out."""

    bits: int
    block_size: int
    is_symmetric: bool

    def lay(self, weights: NDArray[np.float32]) -> Blocks:
        """The grid of one block of every row, by rounding (N, at most block_size) to nearest."""
        return round_blocks(weights, self.bits, self.block_size, is_symmetric=self.is_symmetric)


def _quantize(matrix: NDArray[np.float32], factor: NDArray[np.float32], grid: _Grid) -> Blocks:
    """Quantize some rows."""
    left = np.array(matrix.T, order="C")  # a copy (K, N): an input's weights lie together
    is_zero = left == 0
    columns, rows = left.shape
    size, count = grid.block_size, -(-columns // grid.block_size)
    scales, zeros = (np.empty((count, rows), np.float32) for _ in range(2))
    values = np.zeros((count * size, rows), np.uint8)
    for begin in range(0, columns, _COLUMNS):
        end = min(begin + _COLUMNS, columns)
        errors = np.empty((end - begin, rows), np.float32)
        for column in range(begin, end):
            block = column // size
            if column % size == 0:
                # All of them are as corrected as this one: blocks are cut where runs are.
                laid = grid.lay(np.ascontiguousarray(left[column : column + size].T))
                scales[block], zeros[block] = laid.scales[:, 0], laid.zeros()[:, 0]
            scale = np.where(scales[block] == 0, 1, scales[block])  # a block of zeros has none
            value = np.clip(np.rint(left[column] / scale) + zeros[block], 0, (1 << grid.bits) - 1)
            value = np.where(is_zero[column], zeros[block], value)
            values[column] = value
            off = (left[column] - (value - zeros[block]) * scales[block]) / factor[column, column]
            errors[column - begin] = off
            left[column + 1 : end] -= factor[column, column + 1 : end, None] * off
        left[end:] -= factor[begin:end, end:].T @ errors
    return Blocks(
        packed=pack(values.T, grid.bits).reshape(rows, count, -1),
        scales=np.ascontiguousarray(scales.T),
        zero_points=None if grid.is_symmetric else pack(zeros.T.astype(np.uint8), grid.bits),
        bits=grid.bits,
        block_size=size,
    )
