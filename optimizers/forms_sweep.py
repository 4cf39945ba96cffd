"""From how many rows on int8 products are faster than those of few-bit weights, on this machine.

Owns the sweep: products of the model in both forms, in turns, for growing numbers of rows. They
are more than a cache holds, as the whole model is: from few rows on int8 has the fewer operations,
but twice the bytes to read. It takes a few seconds. Knows nothing of what is made of the answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.runtime import Threads, open_runtime
from optimizers.block_quantization import Rounding
from optimizers.integer_graph import IntegerGraph
from optimizers.linears import Linear, find_linears
from optimizers.quantized_graph import QuantizedGraph

ROWS = (2, 4, 8, 16, 32, 64, 128, 256)
_ROUNDS = 5
_LEAST_S = 0.02  # of a turn: the threads of the other session spin for a while
_WEIGHTS = 128 << 20  # at least that many, where the model has them
_GAIN = 1.1  # at least, or the second form is not worth its memory


def rows_to_change(
    linears: Sequence[Linear],
    rounding: Rounding,
    bits: int,
    *,
    scratch: Path,
    threads: int | None,
) -> int | None:
    """The number of rows from which on int8 takes at most 1 / 1.1 of the time.

    Args:
        linears: Of the float32 graph; the first that are not the head are timed.
        rounding: Gives the few-bit weights.
        bits: Of these.
        scratch: A folder for two small models, removed again.
        threads: Of the sessions; None for as many as there are cores.

    Returns:
        One of ``ROWS``; None where int8 does not win at the last of them.
    """
    products: list[Linear] = []
    for linear in linears:
        if not linear.is_head and sum(each.rows * each.columns for each in products) < _WEIGHTS:
            products.append(linear)
    widths = sorted({linear.rows for linear in products})

    def few_bits(model: Any, found: Sequence[Linear]) -> None:
        graph = QuantizedGraph(model, rounding)
        for linear in found:
            graph.replace_linear(linear, bits)

    def integer(model: Any, found: Sequence[Linear]) -> None:
        graph = IntegerGraph(model)
        for linear in found:
            graph.replace_linear(linear)

    sessions = []
    for name, replace in (("few-bits", few_bits), ("int8", integer)):
        path = scratch / f"sweep-{name}.onnx"
        _write(path, products, replace)
        sessions.append(open_runtime(path, Threads(count=threads)))
        path.unlink()
    change: int | None = None
    for rows in reversed(ROWS):
        before, after = _seconds(sessions, rows, widths)
        if before < _GAIN * after:
            return change
        change = rows
    return change


def _write(path: Path, linears: Sequence[Linear], replace: Any) -> None:
    """A model of products alone, whose float32 weights are read as they are quantized.

    Inputs ``x<K>`` (1, m, K) are shared by products of one width. Of every product's output a
    single column is given: it is computed whole, but not copied.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    floats = ir.TensorType(ir.DataType.FLOAT)
    inputs: dict[int, Any] = {}
    bounds = [
        ir.Value(name=name, const_value=ir.tensor(np.array([number], np.int64), name=name))
        for name, number in (("begin", 0), ("end", 1), ("axis", 2))
    ]
    weights, nodes, columns = [], [], []
    for index, linear in enumerate(linears):
        tensor = linear.weight.const_value
        weight = ir.Value(
            name=f"w{index}",
            const_value=tensor,
            type=ir.TensorType(tensor.dtype),
            shape=tensor.shape,
        )
        turned = [ir.node("Transpose", [weight])] if linear.is_transposed else []
        matrix = turned[0].outputs[0] if turned else weight
        width = linear.rows
        if width not in inputs:
            shape = ir.Shape([1, "m", width])
            inputs[width] = ir.Value(name=f"x{width}", type=floats, shape=shape)
        product = ir.node("MatMul", [inputs[width], matrix], name=f"product{index}")
        column = ir.node("Slice", [product.outputs[0], *bounds])
        weights.append(weight)
        nodes += [*turned, product, column]
        columns.append(column.outputs[0])
    whole = ir.node("Concat", columns, {"axis": 2})
    whole.outputs[0].name = "y"
    whole.outputs[0].type = floats
    graph = ir.Graph(
        list(inputs.values()),
        whole.outputs,
        nodes=[*nodes, whole],
        initializers=[*bounds, *weights],
        opset_imports={"": 21, "com.microsoft": 1},
        name="sweep",
    )
    model = ir.Model(graph, ir_version=10)
    replace(model, find_linears(model))
    common.RemoveUnusedNodesPass()(model)
    ir.save(model, path)


def _seconds(sessions: Sequence[Any], rows: int, widths: Sequence[int]) -> list[float]:
    """The least of several turns each: whatever else the machine does only adds to it."""
    rng = np.random.default_rng(0)
    given = {f"x{width}": rng.standard_normal((1, rows, width), np.float32) for width in widths}
    least = [float("inf")] * len(sessions)
    for _ in range(_ROUNDS):
        for index, session in enumerate(sessions):
            runs, began = 0, time.perf_counter()
            while (spent := time.perf_counter() - began) < _LEAST_S:
                session.run(None, given)
                runs += 1
            least[index] = min(least[index], spent / runs)
    return least
