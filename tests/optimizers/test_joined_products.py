"""Quantized products of one input become one, whose results are theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from numpy.typing import NDArray

from artifacts.runtime import Threads, open_runtime
from optimizers.block_quantization import Rounding
from optimizers.joined_products import join_products
from optimizers.linears import find_linears, new_weight
from optimizers.quantized_graph import QuantizedGraph

INPUTS = 64
COLUMNS = {"gate": 48, "up": 40, "other": 24}
BITS = {"gate": 4, "up": 4, "other": 8}


def _model(bits: dict[str, int]) -> Any:
    """Products of one input, quantized to some bits each."""
    rng = np.random.default_rng(3)
    x = onnx_ir.Value(
        name="x",
        type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT),
        shape=onnx_ir.Shape([1, "tokens", INPUTS]),
    )
    graph = onnx_ir.Graph([x], [], nodes=[], name="products", opset_imports={"": 21})
    model = onnx_ir.Model(graph, ir_version=10)
    for name, columns in COLUMNS.items():
        matrix = rng.standard_normal((INPUTS, columns)).astype(np.float32)
        node = onnx_ir.node("MatMul", [x, new_weight(model, name, matrix)], name=name)
        node.outputs[0].name = f"y_{name}"
        node.outputs[0].dtype = onnx_ir.DataType.FLOAT
        node.outputs[0].shape = onnx_ir.Shape([1, "tokens", columns])
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    quantized = QuantizedGraph(model, Rounding(block_size=32, is_symmetric=False, algorithm="rtn"))
    for linear in find_linears(model):
        quantized.replace_linear(linear, bits[linear.weight.name])
    model.opset_imports.setdefault("com.microsoft", 1)
    return model


def _results(model: Any, path: Path) -> list[NDArray[np.float32]]:
    onnx_ir.save(model, path)
    rows = np.random.default_rng(4).standard_normal((1, 5, INPUTS)).astype(np.float32)
    found: list[NDArray[np.float32]] = open_runtime(path, Threads(count=1)).run(None, {"x": rows})
    return found


def _products(model: Any) -> list[tuple[int, int]]:
    return [
        (node.attributes.get_int("bits"), node.attributes.get_int("N"))
        for node in model.graph
        if node.op_type == "MatMulNBits"
    ]


def test_products_of_one_input_and_equal_bits_become_one(tmp_path: Path) -> None:
    """Bit for bit what they gave by themselves, in the order of the outputs."""
    apart, joined = _model(BITS), _model(BITS)
    assert join_products(joined) == 1
    assert _products(joined) == [(4, COLUMNS["gate"] + COLUMNS["up"]), (8, COLUMNS["other"])]
    wanted = _results(apart, tmp_path / "apart.onnx")
    found = _results(joined, tmp_path / "joined.onnx")
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_of_equal_bits_are_joined(tmp_path: Path) -> None:
    """Three at a time, as queries, keys and values are where an exporter left them apart."""
    apart, joined = (_model(dict.fromkeys(COLUMNS, 8)) for _ in range(2))
    assert join_products(joined) == 2
    assert _products(joined) == [(8, sum(COLUMNS.values()))]
    wanted = _results(apart, tmp_path / "apart.onnx")
    found = _results(joined, tmp_path / "joined.onnx")
    assert [each.shape[-1] for each in found] == [*COLUMNS.values()]
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shared", [True, False])
def test_weights_that_others_read_stay(*, shared: bool) -> None:
    """A constant that is read elsewhere too is not copied."""
    model = _model(BITS)
    if shared:
        gate = next(node for node in model.graph if node.name == "gate")
        model.graph.append(onnx_ir.node("Identity", [gate.inputs[1]]))
    assert join_products(model) == (0 if shared else 1)
