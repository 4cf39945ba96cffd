"""GPTQ on small matrices, against dense least squares."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizers.block_quantization import quantize_blocks
from optimizers.gptq import Fitted, quantize
from optimizers.integer_graph import quantize_columns

pytestmark = pytest.mark.usefixtures("one_torch_thread")
Floats = NDArray[np.float32]


def _layer(outputs: int, inputs: int, tokens: int, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs))
    given = rng.standard_normal((tokens, inputs)) @ mix  # correlated, as in a model
    weight = rng.standard_normal((outputs, inputs))
    return weight.astype(np.float32), given.astype(np.float32)


def _fitted(weight: Floats, given: Floats, *, bits: int = 4, symmetric: bool = False) -> Floats:
    quantizer = Fitted(np.array_split(given, 3)).in_blocks(16, is_symmetric=symmetric)
    return quantizer(weight, bits, whole=False).restore(weight.shape[1])


def _rounded(weight: Floats, *, bits: int = 4, symmetric: bool = False) -> Floats:
    blocks = quantize_blocks(
        weight, bits=bits, block_size=16, is_symmetric=symmetric, algorithm="rtn"
    )
    return blocks.restore(weight.shape[1])


def _error(before: Floats, after: Floats, given: Floats) -> float:
    return float(((given @ (after - before).T).astype(np.float64) ** 2).sum())


def _slowly(
    row: NDArray[np.float64], hessian: NDArray[np.float64], block_size: int
) -> NDArray[np.float64]:
    """Round one weight after another; after each, solve anew for all that are still free."""
    given = np.zeros_like(row)  # the rounded ones
    free = row.copy()
    for column in range(row.size):
        if column % block_size == 0:
            block = free[column : column + block_size]
            low, high = min(block.min(), 0.0), max(block.max(), 0.0)
            step = (high - low) / 15
            zero = round(-low / step)
        given[column] = (min(max(round(free[column] / step) + zero, 0), 15) - zero) * step
        left, right = slice(0, column + 1), slice(column + 1, row.size)
        change = given[left] - row[left]
        free[right] = row[right] - np.linalg.solve(
            hessian[right, right], hessian[right, left] @ change
        )
    return given


@pytest.mark.parametrize("block_size", [16, 256])
def test_errors_are_made_up_for_as_dense_solves_would(block_size: int) -> None:
    """Over several blocks and more than 256 inputs, every weight is that of the slow way."""
    weight, given = _layer(3, 280, 1700, seed=0)
    hessian = given.T.astype(np.float64) @ given
    hessian += 0.01 * hessian.diagonal().mean() * np.eye(280)
    expected = [_slowly(row.astype(np.float64), hessian, block_size) for row in weight]
    quantizer = Fitted(np.array_split(given, 3)).in_blocks(block_size, is_symmetric=False)
    found = quantizer(weight, 4, whole=False).restore(280)
    # One rounding that falls the other way changes all behind it; seldom, but not never.
    same = np.isclose(found, expected, rtol=1e-3, atol=1e-4).all(axis=1)
    assert same.sum() >= 2


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (4, True), (8, False)])
def test_outputs_change_less_than_by_rounding(*, bits: int, symmetric: bool) -> None:
    """The measure that it minimises, on the text that it was given."""
    weight, given = _layer(24, 300, 2000, seed=1)
    found = _fitted(weight, given, bits=bits, symmetric=symmetric)
    rounded = _rounded(weight, bits=bits, symmetric=symmetric)
    assert _error(weight, found, given) < 0.6 * _error(weight, rounded, given)


def test_inputs_that_have_nothing_in_common_leave_rounding_as_it_is() -> None:
    """The twin: where nothing can be made up for, nothing is gained."""
    weight, _ = _layer(5, 64, 1, seed=2)
    np.testing.assert_array_equal(
        _fitted(weight, 3 * np.eye(64, dtype=np.float32)), _rounded(weight)
    )


def test_zeros_stay_and_are_reckoned_with() -> None:
    """A mask survives exactly, and what it forbids is made up for as well."""
    weight, given = _layer(24, 128, 1000, seed=3)
    weight[np.random.default_rng(4).random(weight.shape) < 0.5] = 0
    found = _fitted(weight, given)
    assert not np.any(found[weight == 0])
    assert _error(weight, found, given) < 0.9 * _error(weight, _rounded(weight), given)


def test_inputs_that_are_always_zero_are_rounded() -> None:
    """Nothing is known of them, so their weights move no further than a step."""
    weight, given = _layer(4, 32, 200, seed=5)
    given[:, [3, 17]] = 0.0
    found = _fitted(weight, given)
    assert np.isfinite(found).all()
    assert np.abs(found - weight)[:, [3, 17]].max() < 0.5


def test_rows_do_not_depend_on_each_other_and_the_last_block_may_be_short() -> None:
    """Many rows are worked on a few at a time; 40 inputs fill two blocks and a half."""
    weight, given = _layer(9, 40, 200, seed=6)
    factor = Fitted([given])._factor
    whole = quantize(weight, factor, bits=4, block_size=16, is_symmetric=False)
    last = quantize(weight[-2:], factor, bits=4, block_size=16, is_symmetric=False)
    np.testing.assert_array_equal(whole.restore(40)[-2:], last.restore(40))


def test_columns_with_one_scale_are_fitted_as_well() -> None:
    """As signed bytes, across several runs of corrections; zeros stay zeros."""
    weight, given = _layer(24, 300, 2000, seed=7)
    weight[:, ::9] = 0
    values, scales = Fitted(np.array_split(given, 2)).columns(np.ascontiguousarray(weight.T))
    assert values.dtype == np.int8
    assert (values.shape, scales.shape) == ((300, 24), (24,))
    assert not np.any(values[weight.T == 0])
    nearest, steps = quantize_columns(weight.T)
    found = _error(weight, (values * scales).T, given)
    assert found < 0.7 * _error(weight, (nearest * steps).T, given)
