"""Weights in blocks of low-bit integers, each with a scale and perhaps a zero point.

Owns the packed layout that ``MatMulNBits`` and ``GatherBlockQuantized`` share (com.microsoft
operators), the choice of the rounding, and the check that zero stays zero. Knows nothing of
graphs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optimizers import half_quadratic
from optimizers.errors import StageError
from optimizers.nearest import round_to_nearest
from optimizers.rows import Rows, iterate_blocks

Algorithm = Literal["rtn", "k_quant", "hqq"]
Part = Literal["packed", "scales", "zero_points"]
_NO_ZERO_POINT = 8  # as ONNX Runtime fills up the last byte of a row
_SMALLEST_BLOCK = 16  # that the kernels know
_FITS = 4  # rounds; more gain less than a thousandth
_TINY = np.finfo(np.float32).tiny
_ROWS_AT_ONCE = 1 << 18  # elements; temporaries of the search then stay in a core's cache


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix (N, K) whose rows are cut into ``ceil(K / block_size)`` blocks.

    Attributes:
        packed: (N, blocks, block_size * bits / 8) uint8, low half of a byte first.
        scales: (N, blocks) float32.
        zero_points: (N, ceil(blocks * bits / 8)) uint8, or None where all are 2^(bits - 1).
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    bits: int
    block_size: int

    def restore(self, columns: int) -> NDArray[np.float32]:
        """Dequantize to (N, K) float32, K = ``columns``."""
        rows, blocks = self.scales.shape
        values = _unpack(self.packed.reshape(rows, -1), self.bits).reshape(rows, blocks, -1)
        exact = values.astype(np.float32) - self.zeros()[..., None]
        restored: NDArray[np.float32] = exact * self.scales[..., None]
        return restored.reshape(rows, -1)[:, :columns]

    def take(self, rows: NDArray[np.intp]) -> Blocks:
        """Some of the rows."""
        zero_points = None if self.zero_points is None else self.zero_points[rows]
        return replace(
            self, packed=self.packed[rows], scales=self.scales[rows], zero_points=zero_points
        )

    def zeros(self) -> NDArray[np.float32]:
        """The zero points, unpacked: (N, blocks) whole numbers as float32."""
        rows, blocks = self.scales.shape
        if self.zero_points is None:
            return np.full((rows, blocks), 1 << (self.bits - 1), dtype=np.float32)
        return _unpack(self.zero_points, self.bits)[:, :blocks].astype(np.float32)


@dataclass(frozen=True, slots=True)
class Form:
    """What blocks look like before they are made.

    Attributes:
        rows: N.
        columns: K.
        has_zero_points: Whether each block brings its own.
    """

    rows: int
    columns: int
    bits: int
    block_size: int
    has_zero_points: bool

    @property
    def count(self) -> int:
        """Blocks of a row."""
        return -(-self.columns // self.block_size)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What there is of them."""
        return ("packed", "scales", "zero_points") if self.has_zero_points else ("packed", "scales")

    def shape(self, part: Part) -> tuple[int, ...]:
        """Of one part, as in ``Blocks``."""
        match part:
            case "packed":
                return self.rows, self.count, self.block_size * self.bits // 8
            case "scales":
                return self.rows, self.count
            case "zero_points":
                return self.rows, -(-self.count * self.bits // 8)

    def empty(self) -> Blocks:
        """Blocks of this form, to be filled."""
        return Blocks(
            packed=np.empty(self.shape("packed"), np.uint8),
            scales=np.empty(self.shape("scales"), np.float32),
            zero_points=np.empty(self.shape("zero_points"), np.uint8)
            if self.has_zero_points
            else None,
            bits=self.bits,
            block_size=self.block_size,
        )


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the matrices of a graph are quantized."""

    block_size: int
    is_symmetric: bool
    algorithm: Algorithm

    def form(self, shape: tuple[int, ...], bits: int, *, whole: bool) -> Form:
        """What the blocks of a matrix will look like; in whole blocks only, where ``whole``.

        Raises:
            StageError: Its rows do not divide into whole blocks.
        """
        rows, columns = shape
        size = whole_block_size(columns, self.block_size) if whole else self.block_size
        return Form(rows, columns, bits, size, has_zero_points=not self.is_symmetric)

    def __call__(self, matrix: Rows, bits: int, *, whole: bool = False) -> Blocks:
        """Quantize a matrix (N, K).

        Raises:
            StageError: As in ``form``, or a zero would come back as something else.
        """
        return quantize_blocks(
            matrix,
            bits=bits,
            block_size=self.form(matrix.shape, bits, whole=whole).block_size,
            is_symmetric=self.is_symmetric,
            algorithm=self.algorithm,
        )


def quantize_blocks(
    matrix: Rows,
    *,
    bits: int,
    block_size: int,
    is_symmetric: bool,
    algorithm: Algorithm,
    threads: int = 2,
) -> Blocks:
    """Quantize the rows of a matrix (N, K) in blocks along K, a few rows at a time.

    Raises:
        StageError: A zero of the matrix would come back as something else.
    """
    rows, columns = matrix.shape
    chunk = max(1, _ROWS_AT_ONCE // columns)
    whole = Form(rows, columns, bits, block_size, has_zero_points=not is_symmetric).empty()

    def quantize(part: slice) -> None:
        rows_of_part = np.ascontiguousarray(matrix[part], dtype=np.float32)
        if algorithm == "k_quant":
            blocks = _search(rows_of_part, bits, block_size)
        else:
            blocks = round_blocks(rows_of_part, bits, block_size, is_symmetric=is_symmetric)
            if algorithm == "hqq":
                blocks = _fit(rows_of_part, blocks)
        _check_zeros(rows_of_part, blocks)
        whole.packed[part] = blocks.packed
        whole.scales[part] = blocks.scales
        if whole.zero_points is not None and blocks.zero_points is not None:
            whole.zero_points[part] = blocks.zero_points

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(quantize, iterate_blocks(rows, chunk)):
            pass
    return whole


def _check_zeros(matrix: NDArray[np.float32], blocks: Blocks) -> None:
    """Refuse what would undo a pruning; rows without any zero need not be restored for that.

    Raises:
        StageError: A zero would come back as something else.
    """
    are_zero = matrix == 0
    having = np.flatnonzero(are_zero.any(axis=1))
    if having.size and np.any(blocks.take(having).restore(matrix.shape[1])[are_zero[having]]):
        raise StageError(
            "Quantization would turn exact zeros into other values.",
            remedy="Choose another method of quantize, or leave prune out.",
        )


def join_blocks(parts: list[Blocks]) -> Blocks:
    """Put the blocks of rows under each other."""
    zero_points = [part.zero_points for part in parts if part.zero_points is not None]
    return replace(
        parts[0],
        packed=np.concatenate([part.packed for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zero_points=np.concatenate(zero_points) if zero_points else None,
    )


def whole_block_size(columns: int, block_size: int) -> int:
    """The largest block, at most ``block_size``, that divides rows of ``columns`` weights.

    ``GatherBlockQuantized`` gives whole blocks, so a table's last block must not be padded.

    Raises:
        StageError: No block of 16 or more does.
    """
    while block_size >= _SMALLEST_BLOCK and columns % block_size:
        block_size //= 2
    if block_size < _SMALLEST_BLOCK:
        raise StageError(
            f"Embeddings of {columns} columns do not divide into blocks of {_SMALLEST_BLOCK}.",
            path="embedding_bits",
            remedy="Set it to 32, and lm_head_bits too if the head shares the embeddings.",
        )
    return block_size


def round_blocks(
    matrix: NDArray[np.float32], bits: int, block_size: int, *, is_symmetric: bool
) -> Blocks:
    """Round (N, K) to nearest."""
    integers, scales, zeros = round_to_nearest(matrix, bits, block_size, is_symmetric=is_symmetric)
    rows, count, _ = integers.shape
    return Blocks(
        packed=pack(integers.reshape(rows, -1), bits).reshape(rows, count, -1),
        scales=scales,
        zero_points=None if is_symmetric else pack(zeros, bits, filler=_NO_ZERO_POINT),
        bits=bits,
        block_size=block_size,
    )


def _fit(matrix: NDArray[np.float32], blocks: Blocks) -> Blocks:
    """Move the scales of blocks by half-quadratic splitting; their zero points stay."""
    rows, count = blocks.scales.shape
    size, bits = blocks.block_size, blocks.bits
    padded = np.pad(matrix, ((0, 0), (0, count * size - matrix.shape[1])))
    values, scales = half_quadratic.fit(
        padded.reshape(-1, size),
        blocks.scales.reshape(-1, 1),
        blocks.zeros().reshape(-1, 1),
        largest=(1 << bits) - 1,
    )
    packed = pack(values.astype(np.uint8).reshape(rows, -1), bits).reshape(rows, count, -1)
    return replace(blocks, packed=packed, scales=scales.reshape(rows, count))


def _search(matrix: NDArray[np.float32], bits: int, block_size: int) -> Blocks:
    """Search each block's scale and offset for the least weighted error (ggml's k-quants).

    ONNX Runtime's search ends by rounding the offset to a whole zero point, which costs more than
    the search has gained on most weights; fitting the scale once more to that zero point, with the
    search's own weights, wins it back.
    """
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    rows, columns = matrix.shape
    blocks = -(-columns // block_size)
    padded = np.pad(matrix, ((0, 0), (0, blocks * block_size - columns)))
    # A block of equal values divides by zero in the search, which then keeps its first guess.
    with np.errstate(divide="ignore", invalid="ignore"):
        values, scales, zero_points = quant_tensor_k_quant_cpu(padded, bits, block_size)
    weights = padded.reshape(-1, block_size)
    zero = zero_points.astype(np.float32)
    quantized, fitted = _fit_scales(
        weights, values.astype(np.float32), scales.astype(np.float32), zero, (1 << bits) - 1
    )
    return Blocks(
        packed=pack(quantized.astype(np.uint8).reshape(rows, -1), bits).reshape(rows, blocks, -1),
        scales=fitted.reshape(rows, blocks),
        zero_points=pack(zero_points.reshape(rows, blocks), bits),
        bits=bits,
        block_size=block_size,
    )


def _fit_scales(
    weights: NDArray[np.float32],
    values: NDArray[np.float32],
    scales: NDArray[np.float32],
    zero: NDArray[np.float32],
    largest: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Alternate between the best scale of a block's values and the best values of its scale.

    All are (blocks, block_size) or (blocks, 1). Weighted least squares has the best scale of fixed
    values in closed form; rounding to it has the best values of a fixed scale; so the error never
    grows.
    """
    size = np.abs(weights)
    importance = np.sqrt(np.square(weights).mean(axis=1, keepdims=True)) + size
    for _ in range(_FITS):
        centered = values - zero
        power = (importance * np.square(centered)).sum(axis=1, keepdims=True)
        fit = (importance * centered * weights).sum(axis=1, keepdims=True)
        scales = np.where((power > 0) & (fit > 0), fit / np.maximum(power, _TINY), scales)
        values = np.clip(np.rint(weights / scales) + zero, 0, largest)
    return values, scales.astype(np.float32)


def pack(values: NDArray[np.uint8], bits: int, *, filler: int = 0) -> NDArray[np.uint8]:
    """Pack (N, n) small integers into (N, ceil(n * bits / 8)) bytes."""
    if bits == 8:
        return np.ascontiguousarray(values)
    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)), constant_values=filler)
    packed = values[:, ::2] | (values[:, 1::2] << 4)
    return packed.astype(np.uint8, copy=False)


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Undo ``pack``; an odd count comes back with one value too many."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
