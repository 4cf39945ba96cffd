"""Low-bit blocks, against a plain computation and against ONNX Runtime's kernels."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizers.block_quantization import (
    Algorithm,
    quantize_blocks,
    round_blocks,
    whole_block_size,
)
from optimizers.errors import StageError

CASES = [
    (bits, is_symmetric, algorithm)
    for bits in (4, 8)
    for is_symmetric, algorithm in (
        (True, "rtn"),
        (False, "rtn"),
        (False, "k_quant"),
        (True, "hqq"),
        (False, "hqq"),
    )
]


def _weights(rows: int, columns: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.4] = 0
    weights[0] = 0  # a row of nothing
    weights[1] = np.abs(weights[1]) + 3  # zero lies far outside the values...
    weights[1, 5] = 0  # ...but is among them
    weights[2] = -7.0  # all equal
    return weights


@pytest.mark.parametrize(("bits", "is_symmetric", "algorithm"), CASES)
@pytest.mark.parametrize("columns", [64, 96, 80])
def test_zero_stays_exactly_zero(
    *, bits: int, is_symmetric: bool, algorithm: Algorithm, columns: int
) -> None:
    """Whatever the block, its zero point represents zero exactly, so masks survive."""
    weights = _weights(12, columns)
    blocks = quantize_blocks(
        weights, bits=bits, block_size=32, is_symmetric=is_symmetric, algorithm=algorithm
    )
    assert not np.any(blocks.restore(columns)[weights == 0])


@pytest.mark.parametrize(("bits", "is_symmetric", "algorithm"), CASES)
def test_values_come_back_within_a_step(
    *, bits: int, is_symmetric: bool, algorithm: Algorithm
) -> None:
    """Outside of blocks that lie far from zero, no weight moves further than its block's step."""
    weights = np.random.default_rng(1).standard_normal((10, 96)).astype(np.float32)
    blocks = quantize_blocks(
        weights, bits=bits, block_size=32, is_symmetric=is_symmetric, algorithm=algorithm
    )
    steps = np.repeat(np.abs(blocks.scales), 32, axis=1)
    # A search may clip the ends of a block to serve its middle.
    allowed = 1.01 if algorithm == "rtn" else 3.0
    assert np.all(np.abs(blocks.restore(96) - weights) <= allowed * steps)


@pytest.mark.parametrize("block_size", [32, 128])
def test_the_search_beats_rounding(block_size: int) -> None:
    """k_quant's own measure, errors weighted by the weights' size, is smaller than rtn's."""
    rng = np.random.default_rng(2)
    for weights in (rng.standard_normal((128, 256)), rng.standard_t(3, (128, 256))):
        by_block = weights.astype(np.float32).reshape(-1, block_size)
        importance = np.sqrt(np.square(by_block).mean(axis=1, keepdims=True)) + np.abs(by_block)
        errors = {}
        algorithms: tuple[Algorithm, ...] = ("rtn", "k_quant")
        for algorithm in algorithms:
            blocks = quantize_blocks(
                weights.astype(np.float32),
                bits=4,
                block_size=block_size,
                is_symmetric=False,
                algorithm=algorithm,
            )
            off = blocks.restore(256).reshape(-1, block_size) - by_block
            errors[algorithm] = float((importance * np.square(off)).mean())
        assert errors["k_quant"] < 0.98 * errors["rtn"]


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_half_quadratic_splitting_leaves_most_weights_nearer(*, is_symmetric: bool) -> None:
    """The sum of |error|^0.7, which hqq looks at, grows in no block and falls over all of them."""
    weights = np.random.default_rng(5).standard_t(3, (64, 256)).astype(np.float32)
    sums = {}
    algorithms: tuple[Algorithm, ...] = ("rtn", "hqq")
    for algorithm in algorithms:
        blocks = quantize_blocks(
            weights, bits=4, block_size=32, is_symmetric=is_symmetric, algorithm=algorithm
        )
        off = np.abs(blocks.restore(256) - weights).reshape(-1, 32).astype(np.float64)
        sums[algorithm] = (off**0.7).sum(axis=1)
    assert np.all(sums["hqq"] <= sums["rtn"] * (1 + 1e-6))
    assert sums["hqq"].sum() < 0.97 * sums["rtn"].sum()


@pytest.mark.parametrize("algorithm", ["k_quant", "hqq"])
def test_chunks_do_not_matter(algorithm: Algorithm) -> None:
    """A matrix that is quantized in many chunks is the same as row by row."""
    weights = np.random.default_rng(3).standard_normal((5000, 256)).astype(np.float32)
    whole, last = (
        quantize_blocks(part, bits=4, block_size=16, is_symmetric=False, algorithm=algorithm)
        for part in (weights, weights[-3:])
    )
    np.testing.assert_array_equal(whole.packed[-3:], last.packed)
    np.testing.assert_array_equal(whole.zero_points[-3:], last.zero_points)  # type: ignore[index]


@pytest.mark.parametrize(
    ("columns", "asked", "given"), [(576, 128, 64), (576, 32, 32), (4096, 256, 256), (48, 32, 16)]
)
def test_tables_take_the_largest_block_that_divides(columns: int, asked: int, given: int) -> None:
    """A look-up gives whole blocks, so a table's width must be a multiple of its block."""
    assert whole_block_size(columns, asked) == given


def test_tables_that_no_block_divides_are_refused() -> None:
    """A width without a divisor of 16 names the field that leaves the table alone."""
    with pytest.raises(StageError) as caught:
        whole_block_size(100, 128)
    assert caught.value.path == "embedding_bits"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_rounding_is_onnx_runtime_s_own(*, bits: int, is_symmetric: bool, block_size: int) -> None:
    """Bit by bit, on weights of every kind and scale: only the time that it takes is another."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    rng = np.random.default_rng(bits + block_size)
    config = DefaultWeightOnlyQuantConfig(
        block_size=block_size, is_symmetric=is_symmetric, bits=bits
    )
    for columns in (32, 64, 98, 256, 290):
        drawn = rng.standard_normal((24, columns)).astype(np.float32)
        sparse = np.where(rng.random(drawn.shape) < 0.7, np.float32(0), drawn)
        for weights in (drawn, np.abs(drawn), sparse, drawn * 1e-6, np.rint(drawn * 4) / 4 + 0):
            expected = DefaultWeightOnlyQuantizer(config).qbits_block_quant(
                np.ascontiguousarray(weights.T)
            )
            blocks = round_blocks(weights, bits, block_size, is_symmetric=is_symmetric)
            assert np.array_equal(blocks.packed, expected[0])
            assert np.array_equal(blocks.scales.ravel(), expected[1].ravel())
            if not is_symmetric:
                assert blocks.zero_points is not None
                assert np.array_equal(blocks.zero_points.ravel(), expected[2].ravel())
