"""Puts block-quantized operators into an ONNX graph.

Owns ``MatMulNBits`` and ``GatherBlockQuantized`` (com.microsoft) and the sharing of one quantized
table between the embeddings and a tied head. Weights are quantized when the graph is written. Knows
nothing of how blocks are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optimizers.accuracy_levels import FAST
from optimizers.block_quantization import Blocks, Rounding
from optimizers.lazy_blocks import LazyBlocks
from optimizers.linears import Linear, find_embeddings, new_weight, replace_node
from optimizers.rows import Rows, are_equal, rows_of

EMBEDDINGS = Rounding(block_size=32, is_symmetric=True, algorithm="rtn")
"""How token tables are quantized where only the products' form was chosen by the user."""

_DOMAIN = "com.microsoft"
_AT_ONCE = 1 << 20  # elements of two tables that are compared at a time


class Quantizer(Protocol):
    """Quantizes a matrix (N, K) to some bits, with what is known of its inputs at this moment."""

    def __call__(self, matrix: NDArray[np.float32], bits: int, *, whole: bool) -> Blocks:
        """Give the blocks."""
        ...


@dataclass(frozen=True, slots=True)
class _Weights:
    """The initializers of one quantized matrix; ``data`` is (N, bytes of a row)."""

    data: Any
    scales: Any
    zero_points: Any | None
    blocks: int
    block_size: int

    def operands(self) -> list[Any]:
        """Scales and, where there are any, zero points."""
        return [self.scales] if self.zero_points is None else [self.scales, self.zero_points]


class QuantizedGraph:
    """A graph (``onnx_ir.Model``) whose layers are replaced one by one."""

    def __init__(self, model: Any, rounding: Rounding) -> None:
        self._model = model
        self._rounding = rounding
        self._tables = [node.inputs[0] for node in find_embeddings(model)]
        self._shared: dict[tuple[int, int], _Weights] = {}

    def replace_linear(
        self,
        linear: Linear,
        bits: int,
        level: int = FAST,
        *,
        quantize: Quantizer | None = None,
        shares: bool = True,
    ) -> None:
        """Turn a product into ``MatMulNBits``; a Gemm's bias is added behind it.

        Args:
            linear: To be replaced.
            bits: Per weight.
            level: 4 computes with int8 activations: the fast kernels, the only ones for 8 bits.
            quantize: For this product alone and at once, unless it shares its weights with the
                embeddings.
            shares: Whether it may: a tied head then has the embeddings' bytes.
        """
        import onnx_ir

        name = f"{linear.weight.name}_Q{bits}"
        table = self._tied_table(linear) if shares else None
        if table is None:
            blocks = self._lazily(linear.outputs(), bits, whole=False)
            if quantize is not None:
                made = quantize(linear.matrix().T, bits, whole=False)
                blocks = LazyBlocks(blocks.form, lambda: made)
            weights = self._add(name, blocks, flat=False)
            nodes, packed = [], weights.data
        else:
            weights = self._table_weights(table, bits)
            shape = np.array([linear.columns, weights.blocks, -1], dtype=np.int64)
            by_block = new_weight(self._model, f"{name}_shape", shape)
            reshape = onnx_ir.node("Reshape", [weights.data, by_block])
            nodes, packed = [reshape], reshape.outputs[0]
        product = onnx_ir.node(
            "MatMulNBits",
            [linear.node.inputs[0], packed, *weights.operands()],
            {
                "K": linear.rows,
                "N": linear.columns,
                "bits": bits,
                "block_size": weights.block_size,
                "accuracy_level": level,
            },
            domain=_DOMAIN,
            name=linear.node.name,
        )
        nodes.append(product)
        if linear.bias is not None:
            nodes.append(onnx_ir.node("Add", [product.outputs[0], linear.bias]))
        replace_node(linear.node, nodes)

    def replace_table(self, node: Any, bits: int) -> Any:
        """Turn a look-up of tokens into ``GatherBlockQuantized``, and give that."""
        import onnx_ir

        table = node.inputs[0]
        weights = self._table_weights(table, bits)
        looked_up = onnx_ir.node(
            "GatherBlockQuantized",
            [weights.data, node.inputs[1], *weights.operands()],
            {
                "gather_axis": 0,
                "quantize_axis": 1,
                "block_size": weights.block_size,
                "bits": bits,
            },
            domain=_DOMAIN,
            name=node.name,
        )
        replace_node(node, [looked_up])
        return looked_up

    def _tied_table(self, linear: Linear) -> Any | None:
        """The token table that a head shares its values with, also where an exporter copied it."""
        if not linear.is_head:
            return None
        at_once = max(1, _AT_ONCE // linear.rows)
        for table in self._tables:
            if are_equal(
                rows_of(table.const_value, is_turned=False), linear.outputs(), at_once=at_once
            ):
                return table
        return None

    def _table_weights(self, table: Any, bits: int) -> _Weights:
        """The quantized table, made once for everybody who uses it at these bits."""
        key = (id(table), bits)
        if key not in self._shared:
            blocks = self._lazily(rows_of(table.const_value, is_turned=False), bits, whole=True)
            self._shared[key] = self._add(f"{table.name}_Q{bits}", blocks, flat=True)
        return self._shared[key]

    def _lazily(self, matrix: Rows, bits: int, *, whole: bool) -> LazyBlocks:
        form = self._rounding.form(matrix.shape, bits, whole=whole)
        return LazyBlocks(form, lambda: self._rounding(matrix, bits, whole=whole))

    def _add(self, name: str, blocks: LazyBlocks, *, flat: bool) -> _Weights:
        return _Weights(
            data=blocks.add(self._model, name, "packed", flat=flat),
            scales=blocks.add(self._model, f"{name}_scales", "scales"),
            zero_points=blocks.add(self._model, f"{name}_zero_points", "zero_points")
            if blocks.form.has_zero_points
            else None,
            blocks=blocks.form.count,
            block_size=blocks.form.block_size,
        )
