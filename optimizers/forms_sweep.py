"""From how many rows on int8 products are faster than those of few-bit weights, on this machine.

Owns the sweep: one product of the model in both forms, in turns, for growing numbers of rows. It
takes a second or two. Knows nothing of what is made of the answer.
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
        linears: Of the float32 graph; the largest that is not the head is timed.
        rounding: Gives the few-bit weights.
        bits: Of these.
        scratch: A folder for two small models, removed again.
        threads: Of the sessions; None for as many as there are cores.

    Returns:
        One of ``ROWS``; None where int8 does not win at the last of them.
    """
    products = [linear for linear in linears if not linear.is_head]
    largest = max(products, key=lambda linear: linear.rows * linear.columns)

    def few_bits(model: Any, linear: Linear) -> None:
        QuantizedGraph(model, rounding).replace_linear(linear, bits)

    def integer(model: Any, linear: Linear) -> None:
        IntegerGraph(model).replace_linear(linear)

    sessions = []
    for name, replace in (("few-bits", few_bits), ("int8", integer)):
        path = scratch / f"sweep-{name}.onnx"
        _write(path, largest, replace)
        sessions.append(open_runtime(path, Threads(count=threads)))
        path.unlink()
    change: int | None = None
    for rows in reversed(ROWS):
        before, after = _seconds(sessions, rows, largest.rows)
        if before < _GAIN * after:
            return change
        change = rows
    return change


def _write(path: Path, linear: Linear, replace: Any) -> None:
    """A model of one product alone, whose float32 weight is read as it is quantized."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    tensor = linear.weight.const_value
    weight = ir.Value(
        name="w", const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape
    )
    turned = [ir.node("Transpose", [weight])] if linear.is_transposed else []
    matrix = turned[0].outputs[0] if turned else weight
    rows = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, "m", linear.rows])
    )
    product = ir.node("MatMul", [rows, matrix], name="product")
    product.outputs[0].name = "y"
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [rows],
        product.outputs,
        nodes=[*turned, product],
        initializers=[weight],
        opset_imports={"": 21, "com.microsoft": 1},
        name="sweep",
    )
    model = ir.Model(graph, ir_version=10)
    replace(model, find_linears(model)[0])
    common.RemoveUnusedNodesPass()(model)
    ir.save(model, path)


def _seconds(sessions: Sequence[Any], rows: int, inputs: int) -> list[float]:
    """The least of several turns each: whatever else the machine does only adds to it."""
    rng = np.random.default_rng(0)
    given = {"x": rng.standard_normal((1, rows, inputs), np.float32)}
    least = [float("inf")] * len(sessions)
    for _ in range(_ROUNDS):
        for index, session in enumerate(sessions):
            runs, began = 0, time.perf_counter()
            while (spent := time.perf_counter() - began) < _LEAST_S:
                session.run(None, given)
                runs += 1
            least[index] = min(least[index], spent / runs)
    return least
