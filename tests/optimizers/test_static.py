"""Static int8: scales that a text gives, and the products computed with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from artifacts.runtime import Threads, open_runtime
from optimizers.activation_ranges import Choice, Rounding, choose_rounding
from optimizers.integer_graph import quantize_columns
from optimizers.linears import find_linears
from optimizers.static_graph import replace_products

ROWS, INPUTS, OUTPUTS = 6, 96, 64
ROUNDING = Rounding(np.float32(0.03), np.uint8(90))
Floats = NDArray[np.float32]


def _session(weight: Floats, bias: Floats, folder: Path, rounding: Rounding = ROUNDING) -> Any:
    """Two products of one input, one with a bias, both replaced; both come out."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Gemm", ["x", "v", "b"], ["z"]),
        helper.make_node("Concat", ["y", "z"], ["logits"], axis=1),
    ]
    weights = {"w": weight, "v": -weight, "b": bias}
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, INPUTS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 2 * OUTPUTS])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = onnx_ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    replace_products(model, find_linears(model), rounding)
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["QuantizeLinear", "MatMulIntegerToFloat", "MatMulIntegerToFloat", "Concat"]
    path = folder / "static.onnx"
    onnx_ir.save(model, path)
    return open_runtime(path, Threads(count=1))


def _drawn(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_product_is_bit_for_bit_what_numpy_computes(tmp_path: Path) -> None:
    """Bytes, whole sums, and one multiplication with both scales; also beyond the range."""
    weight, bias, rows = _drawn(INPUTS, OUTPUTS), _drawn(OUTPUTS, seed=1), 3 * _drawn(ROWS, INPUTS)
    (found,) = _session(weight, bias, tmp_path).run(None, {"x": rows})
    values, scales = quantize_columns(weight)
    rounded = np.clip(np.rint(rows / ROUNDING.scale) + ROUNDING.zero_point, 0, 255).astype(np.int64)
    assert rounded.min() == 0
    assert rounded.max() == 255
    sums = (rounded - ROUNDING.zero_point) @ values.astype(np.int64)
    product = sums.astype(np.float32) * (scales * ROUNDING.scale)
    np.testing.assert_array_equal(found[:, :OUTPUTS], product)
    np.testing.assert_allclose(found[:, OUTPUTS:], bias - product, rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours_at_all(tmp_path: Path) -> None:
    """Bit for bit the same, whatever else is in the batch."""
    session = _session(_drawn(INPUTS, OUTPUTS), _drawn(OUTPUTS), tmp_path)
    rows = _drawn(ROWS, INPUTS, seed=1)
    rows[3, 7] = 500.0
    (together,) = session.run(None, {"x": rows})
    (alone,) = session.run(None, {"x": rows[:1]})
    np.testing.assert_array_equal(together[:1], alone)


def test_extreme_products_do_not_saturate(tmp_path: Path) -> None:
    """Sums of the largest bytes are exact, also on machines that add products in 16 bits."""
    weight = np.full((INPUTS, OUTPUTS), 127.0, dtype=np.float32)
    weight[1::3] = -127.0
    rows = np.full((ROWS, INPUTS), 255.0, dtype=np.float32)
    unit = Rounding(np.float32(1), np.uint8(0))
    (found,) = _session(weight, np.zeros(OUTPUTS, np.float32), tmp_path, unit).run(
        None, {"x": rows}
    )
    np.testing.assert_allclose(found[:, :OUTPUTS], rows @ weight, rtol=1e-6)


def _squared_error(values: Floats, low: float, high: float) -> float:
    step = (high - low) / 255
    zero = round(-low / step)
    rounded = (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step
    return float(np.square(values.astype(np.float64) - rounded).sum())


@pytest.mark.parametrize("seed", range(4))
def test_mse_finds_the_range_that_rounds_best(seed: int) -> None:
    """No range of a fine grid, tried out on the values themselves, is clearly better."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, 20_000).astype(np.float32) + np.float32(rng.uniform(-1, 1))
    chosen = choose_rounding(np.array_split(values, 3), "mse", 100.0)
    low = -float(chosen.scale) * int(chosen.zero_point)
    high = low + 255 * float(chosen.scale)
    shares = np.linspace(0.03, 1, 40)
    tried = [
        _squared_error(values, left * float(values.min()), right * float(values.max()))
        for left in shares
        for right in shares
    ]
    assert _squared_error(values, low, high) < 1.03 * min(tried)


def test_mse_clips_what_is_rare_and_covers_what_is_not() -> None:
    """One large value of a million is not worth coarser steps for all others; a thousand are."""
    values = _drawn(1_000_000)
    for count, is_covered in ((1, False), (1000, True)):
        values[:count] = 30.0
        chosen = choose_rounding([values], "mse", 100.0)
        high = float(chosen.scale) * (255 - int(chosen.zero_point))
        assert (high > 29.0) is is_covered
        assert high > 4.0


@pytest.mark.parametrize(("choice", "covered"), [("minmax", 1.0), ("percentile", 0.98)])
def test_the_others_cover_the_share_that_they_say(choice: Choice, covered: float) -> None:
    """Minmax covers all; a percentile clips half of the rest on either side."""
    values = _drawn(40_000)
    chosen = choose_rounding(np.array_split(values, 7), choice, 98.0)
    low = -float(chosen.scale) * int(chosen.zero_point)
    high = low + 255 * float(chosen.scale)
    slack = float(chosen.scale)
    assert np.mean(values < low - slack) == pytest.approx((1 - covered) / 2, abs=3e-3)
    assert np.mean(values > high + slack) == pytest.approx((1 - covered) / 2, abs=3e-3)


@pytest.mark.parametrize("choice", ["mse", "percentile", "minmax"])
@pytest.mark.parametrize(
    "values", [np.zeros(100), np.linspace(2, 3, 100), np.linspace(-3, -2, 100)]
)
def test_zero_comes_back_exactly(choice: Choice, values: Any) -> None:
    """Also where the text shows nothing else, or nothing near it."""
    rounding = choose_rounding([values.astype(np.float32)], choice, 99.999)
    assert rounding.scale > 0
    zero = np.clip(np.rint(0 / rounding.scale) + rounding.zero_point, 0, 255)
    assert zero == rounding.zero_point
