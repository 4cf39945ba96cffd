"""int8 products with one scale per row, run in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from artifacts.manifest import GraphSpec
from artifacts.runtime import Threads, open_runtime
from optimizers import lazy_columns
from optimizers.integer_graph import IntegerGraph, quantize_columns
from optimizers.lazy_columns import LazyColumns, quantize_a_few_at_a_time
from optimizers.linears import find_linears
from optimizers.spec import parse_chain
from tests.optimizers.onnx_stage import run_stage

ROWS, INPUTS, OUTPUTS = 6, 96, 64


def _float_model(weights: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """Products of one shared input."""
    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"], name=name) for name in weights]
    nodes.append(helper.make_node("Sum", [f"y_{name}" for name in weights], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, INPUTS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, None, None])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _weights(count: int = 1) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {
        f"w{index}": rng.standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
        for index in range(count)
    }


def _per_row(weights: dict[str, NDArray[np.float32]], folder: Path) -> Any:
    model = onnx_ir.from_proto(_float_model(weights))
    graph = IntegerGraph(model)
    for linear in find_linears(model):
        graph.replace_linear(linear)
    path = folder / "per_row.onnx"
    onnx_ir.save(model, path)
    return open_runtime(path, Threads(count=1))


def _per_tensor(weights: dict[str, NDArray[np.float32]], folder: Path) -> Any:
    """The twin: ONNX Runtime's own dynamic quantization, one scale for all rows."""
    (weight,) = weights.values()
    values, scales = quantize_columns(weight)
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["x", "b", "s"], ["logits"], domain="com.microsoft"
    )
    graph = helper.make_graph(
        [node],
        "twin",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, INPUTS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, None, OUTPUTS])],
        [numpy_helper.from_array(values, "b"), numpy_helper.from_array(scales, "s")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "twin.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return open_runtime(path, Threads(count=1))


def _about_one_side(rows: int) -> NDArray[np.float32]:
    """Rows as a gated feed-forward layer gives: most numbers about zero, some far above it."""
    drawn = np.random.default_rng(5).standard_normal((1, rows, INPUTS))
    return np.where(drawn > 0, 4 * drawn**2, 0.2 * drawn).astype(np.float32)


def _slowly(rows: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """The product with a zero point per row, in whole numbers."""
    values, scales = quantize_columns(weight)
    low, high = rows.min(-1, keepdims=True, initial=0), rows.max(-1, keepdims=True, initial=0)
    step = (high - low) / np.float32(255)
    zero = np.rint(-low / step)
    steps = np.clip(np.rint(rows / step) + zero, 0, 255) - zero
    sums = steps.astype(np.float64) @ values.astype(np.float64)
    product: NDArray[np.float64] = sums * (step.astype(np.float64) * scales)
    return product


def _with_neighbour(session: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One row's result alone, and beside rows one of which has an outlier."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((1, ROWS, INPUTS)).astype(np.float32)
    rows[0, 3, 7] = 500.0
    alone = session.run(None, {"x": rows[:, :1]})[0][0, 0]
    together = session.run(None, {"x": rows})[0][0, 0]
    return alone, together


@pytest.mark.parametrize("times", [1, 2])
def test_a_row_does_not_depend_on_its_neighbours_at_all(tmp_path: Path, times: int) -> None:
    """Bit for bit the same, whatever else is in the batch, with zero points and (wider) without."""
    weight = np.tile(_weights()["w0"], times)
    alone, together = _with_neighbour(_per_row({"w0": weight}, tmp_path))
    np.testing.assert_array_equal(alone, together)


def test_one_scale_for_the_tensor_would_fail_that(tmp_path: Path) -> None:
    """The check above can tell: with one scale per tensor an outlier ruins its neighbours."""
    alone, together = _with_neighbour(_per_tensor(_weights(), tmp_path))
    assert np.abs(alone - together).max() > 1.0


@pytest.mark.parametrize(("times", "least"), [(1, -128.0), (2, -127.0)])
def test_extreme_products_do_not_saturate(tmp_path: Path, times: int, least: float) -> None:
    """Sums of the largest bytes are exact, also on machines that add products in 16 bits."""
    weight = np.full((INPUTS, times * OUTPUTS), 127.0, dtype=np.float32)
    weight[1::3] = -127.0
    rows = np.full((1, ROWS, INPUTS), 127.0, dtype=np.float32)
    rows[:, :, ::3] = least
    (result,) = _per_row({"w": weight}, tmp_path).run(None, {"x": rows})
    np.testing.assert_allclose(result, rows @ weight, rtol=1e-6)


def test_products_are_close_and_a_row_of_zeros_gives_zeros(tmp_path: Path) -> None:
    """Two roundings to 8 bits cost about a percent of the result's scale."""
    weights = _weights()
    rows = np.random.default_rng(2).standard_normal((1, ROWS, INPUTS)).astype(np.float32)
    rows[0, 2] = 0
    (result,) = _per_row(weights, tmp_path).run(None, {"x": rows})
    exact = rows @ weights["w0"]
    assert np.abs(result - exact).max() < 0.02 * np.abs(exact).max()
    assert not np.any(result[0, 2])


def test_rows_have_zero_points_where_there_are_no_more_outputs_than_inputs(tmp_path: Path) -> None:
    """To the numbers of the slow way, and nearer to the truth than about zero."""
    (weight,) = _weights().values()
    rows = _about_one_side(ROWS)
    (found,) = _per_row({"w0": weight}, tmp_path).run(None, {"x": rows})
    np.testing.assert_allclose(found, _slowly(rows, weight), rtol=1e-4, atol=1e-3)
    values, scales = quantize_columns(weight)
    step = np.abs(rows).max(-1, keepdims=True) / 127
    about_zero = (np.rint(rows / step) * step) @ (values * scales)
    exact = rows.astype(np.float64) @ weight
    assert np.square(found - exact).mean() < 0.5 * np.square(about_zero - exact).mean()


def test_wider_outputs_and_older_operators_go_without_them(tmp_path: Path) -> None:
    """There they cost more than they gain, or cannot be said."""
    wide = np.concatenate([*_weights(2).values()], axis=1)
    for weight, opset in ((wide, 21), (_weights()["w0"], 20)):
        proto = _float_model({"w": weight})
        model = onnx_ir.from_proto(proto)
        model.opset_imports[""] = opset
        (linear,) = find_linears(model)
        IntegerGraph(model).replace_linear(linear)
        assert "ReduceMin" not in {node.op_type for node in model.graph}
        path = tmp_path / f"{opset}.onnx"
        onnx_ir.save(model, path)
        rows = _about_one_side(ROWS)
        (found,) = open_runtime(path, Threads(count=1)).run(None, {"x": rows})
        assert np.abs(found - rows @ weight).max() < 0.02 * np.abs(rows @ weight).max()


def test_weights_may_be_rounded_by_another_rule(tmp_path: Path) -> None:
    """What the rule gives is what is stored, and what the zero points reckon with."""
    (weight,) = _weights().values()

    def halves(matrix: NDArray[np.float32]) -> Any:
        values, scales = quantize_columns(matrix)
        return (values // 2).astype(np.int8), scales * 2

    model = onnx_ir.from_proto(_float_model({"w0": weight}))
    (linear,) = find_linears(model)
    IntegerGraph(model).replace_linear(linear, halves)
    onnx_ir.save(model, tmp_path / "halves.onnx")
    rows = _about_one_side(ROWS)
    (found,) = open_runtime(tmp_path / "halves.onnx", Threads(count=1)).run(None, {"x": rows})
    values, scales = halves(weight)
    assert np.abs(found - rows @ (values * scales)).max() < 0.01 * np.abs(found).max()
    assert np.array_equal(
        onnx_ir.load(tmp_path / "halves.onnx").graph.initializers["w0_int8"].const_value.numpy(),
        values,
    )


def test_products_of_one_input_share_its_rounding() -> None:
    """The gate and up projections read the same activations, which are rounded once."""
    model = onnx_ir.from_proto(_float_model(_weights(3)))
    graph = IntegerGraph(model)
    for linear in find_linears(model):
        graph.replace_linear(linear)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("MatMulIntegerToFloat") == 3


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_columns_keep_zeros_and_use_the_whole_range(share: float) -> None:
    """Symmetric bytes: zero is zero and the largest weight of a column is 127."""
    weight = _weights()["w0"]
    weight[np.random.default_rng(4).random(weight.shape) < share] = 0
    values, scales = quantize_columns(weight)
    assert not np.any(values[weight == 0])
    assert np.all(np.abs(values).max(axis=0) == 127)
    assert np.abs(values * scales - weight).max() <= scales.max() / 2 * 1.001


def test_wide_inputs_have_blocks_where_asked(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """Each layer's last product alone: its inputs are wider than the model."""
    model, spec = tiny_llama_export
    layers = len(spec.layers)
    kinds, sizes = {}, {}
    for size in (None, 32):
        folder = tmp_path / str(size)
        folder.mkdir()
        run_stage({"method": "dynamic", "wide_block_size": size}, model, spec, folder)
        nodes = [*onnx_ir.load(folder / "model.onnx").graph]
        kinds[size] = Counter(node.op_type for node in nodes)
        sizes[size] = [
            node.attributes.get_int("K") for node in nodes if node.op_type == "MatMulNBits"
        ]
    assert kinds[None]["MatMulNBits"] == 0
    assert kinds[32]["MatMulNBits"] == layers
    assert kinds[32]["MatMulIntegerToFloat"] == kinds[None]["MatMulIntegerToFloat"] - layers
    assert len(set(sizes[32])) == 1
    assert (
        sizes[32][0] > onnx_ir.load(model).graph.initializers["model.embed_tokens.weight"].shape[1]
    )


def test_recipes_of_before_stay_valid() -> None:
    """A field that is not set is no part of what was asked for."""
    (plain,) = parse_chain("chain", [{"quantize": {"method": "dynamic"}}]).stages
    (wide,) = parse_chain(
        "chain", [{"quantize": {"method": "dynamic", "wide_block_size": 64}}]
    ).stages
    assert not {"wide_block_size", "algorithm"} & plain.identity().keys()
    assert wide.identity()["wide_block_size"] == 64


@pytest.mark.parametrize("at_once", [1, 3 * INPUTS, 1 << 20])
def test_columns_that_are_made_a_few_at_a_time_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """They are made when they are first read, and forgotten when both parts were."""
    monkeypatch.setattr(lazy_columns, "_AT_ONCE", at_once)
    weight = _weights()["w0"]
    made: list[int] = []

    def counting(matrix: NDArray[np.float32]) -> Any:
        made.append(matrix.shape[1])
        return quantize_columns(matrix)

    model = onnx_ir.from_proto(_float_model(_weights()))
    columns = LazyColumns(
        weight.shape, lambda: quantize_a_few_at_a_time(weight.T, counting), with_sums=True
    )
    values, scales = columns.add_bytes(model, "values"), columns.add_scales(model, "scales")
    sums = columns.add_sums(model, "sums")
    assert (tuple(values.shape), tuple(scales.shape)) == (weight.shape, weight.shape[1:])
    assert made == []
    expected = quantize_columns(weight)
    np.testing.assert_array_equal(values.const_value.numpy(), expected[0])
    np.testing.assert_array_equal(scales.const_value.numpy(), expected[1])
    whole = expected[0].astype(np.int64).sum(axis=0)
    np.testing.assert_allclose(sums.const_value.numpy(), whole * expected[1], rtol=1e-6)
    assert sum(made) == OUTPUTS
    assert max(made) <= max(1, at_once // INPUTS)
    scales.const_value.numpy()
    assert sum(made) == 2 * OUTPUTS
