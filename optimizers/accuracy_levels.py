"""Which 4-bit products may round their activations to int8, by what that costs them.

``MatMulNBits`` at accuracy level 4 rounds each block of a row of activations to int8 and is fast;
at level 1 it computes in float32. One activation that is far larger than its neighbours leaves them
no steps (Sun et al., "Massive Activations in Large Language Models", 2024,
https://arxiv.org/abs/2402.17762), which can change the likeliest token
(https://github.com/microsoft/onnxruntime/issues/29849). Owns the measure: both levels by ONNX
Runtime's own kernels, on rows of a calibration text. More bits for the weights would not help,
since 8 bits have level 4 alone. Knows nothing of graphs.

On the demo model level 4 costs the worst row of any product 0.012 of its output, and rounding the
weights to 4 bits costs the average row 0.05 and more; so nothing changes there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizers.block_quantization import Blocks

FAST, EXACT = 4, 1
_ROWS = 128  # of activations that are tried


@dataclass(frozen=True, slots=True)
class LevelError:
    """What rounding costs one product, as shares of a row's output (l2 norms).

    Attributes:
        activations: Of the worst row, at level 4 instead of 1.
        weights: Of the average row, for rounding the weights.
    """

    activations: float
    weights: float

    @property
    def level(self) -> int:
        """The fast kernel, unless its own rounding outweighs that of the weights."""
        return FAST if self.activations <= self.weights else EXACT


def level_error(
    matrix: NDArray[np.float32], blocks: Blocks, rows: NDArray[np.float32]
) -> LevelError:
    """Run a product at both levels.

    Args:
        matrix: Its weight (K, N).
        blocks: The same, quantized.
        rows: Activations (n, K); those of the most uneven blocks are tried, and some others.
    """
    rows = _telling(rows, blocks.block_size)
    wanted = rows @ matrix
    exact, fast = (_multiply(matrix.shape, blocks, rows, level) for level in (EXACT, FAST))
    return LevelError(
        activations=float(_relative(fast - exact, exact).max()),
        weights=float(_relative(exact - wanted, wanted).mean()),
    )


def _telling(rows: NDArray[np.float32], block_size: int) -> NDArray[np.float32]:
    """Half of the rows are those with the most uneven blocks, the others lie evenly between."""
    if len(rows) <= _ROWS:
        return rows
    padded = np.pad(np.abs(rows), ((0, 0), (0, -rows.shape[1] % block_size)))
    by_block = padded.reshape(len(rows), -1, block_size)
    uneven = by_block.max(axis=2) / (by_block.mean(axis=2) + np.finfo(np.float32).tiny)
    worst = np.argsort(-uneven.max(axis=1), kind="stable")[: _ROWS // 2]
    evenly = np.linspace(0, len(rows) - 1, _ROWS // 2).astype(np.int64)
    return rows[np.union1d(worst, evenly)]


def _relative(off: NDArray[np.float32], outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    size = np.linalg.norm(outputs, axis=1)
    some = size > 0  # a row of nothing has nothing to lose
    relative: NDArray[np.float32] = np.linalg.norm(off, axis=1)[some] / size[some]
    return relative if relative.size else np.zeros(1, np.float32)


def _multiply(
    shape: tuple[int, ...], blocks: Blocks, rows: NDArray[np.float32], level: int
) -> NDArray[np.float32]:
    """Run one ``MatMulNBits`` in a session of its own."""
    import onnx_ir as ir
    import onnxruntime as ort

    weights = {"packed": blocks.packed, "scales": blocks.scales}
    if blocks.zero_points is not None:
        weights["zero_points"] = blocks.zero_points
    constants = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name))
        for name, array in weights.items()
    ]
    given = ir.Value(name="rows", type=ir.TensorType(ir.DataType.FLOAT))
    given.shape = ir.Shape(["n", shape[0]])
    attributes: dict[str, Any] = {
        "K": shape[0],
        "N": shape[1],
        "bits": blocks.bits,
        "block_size": blocks.block_size,
        "accuracy_level": level,
    }
    node = ir.node("MatMulNBits", [given, *constants], attributes, domain="com.microsoft")
    node.outputs[0].name = "product"
    node.outputs[0].type = given.type
    graph = ir.Graph(
        [given],
        node.outputs,
        nodes=[node],
        initializers=constants,
        opset_imports={"": 21, "com.microsoft": 1},
        name="product",
    )
    content = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    product: NDArray[np.float32] = session.run(None, {"rows": np.ascontiguousarray(rows)})[0]
    return product
