"""Puts block-quantized operators into an ONNX graph.

Owns ``MatMulNBits`` and ``GatherBlockQuantized`` (com.microsoft) and the sharing of one quantized
table between the embeddings and a tied head. Knows nothing of how blocks are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optimizers.accuracy_levels import FAST
from optimizers.block_quantization import Blocks, quantize_blocks, whole_block_size
from optimizers.linears import Linear, find_embeddings, new_weight, replace_node

_DOMAIN = "com.microsoft"


class Quantizer(Protocol):
    """Quantizes a matrix (N, K) to some bits; in whole blocks only, where ``whole`` says so."""

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

    def __init__(self, model: Any, quantize: Quantizer) -> None:
        self._model = model
        self._quantize = quantize
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
            quantize: For this product alone, unless it shares its weights with the embeddings.
            shares: Whether it may: a tied head then has the embeddings' bytes.
        """
        import onnx_ir

        name = f"{linear.weight.name}_Q{bits}"
        table = self._tied_table(linear) if shares else None
        if table is None:
            weights = self._add(
                name, (quantize or self._quantize)(linear.matrix().T, bits, whole=False), flat=False
            )
            nodes, packed = [], weights.data
        else:
            weights = self._weights(table, table.const_value.numpy(), bits)
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

    def replace_table(self, node: Any, bits: int) -> None:
        """Turn a look-up of tokens into ``GatherBlockQuantized``."""
        import onnx_ir

        table = node.inputs[0]
        weights = self._weights(table, table.const_value.numpy(), bits)
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

    def _tied_table(self, linear: Linear) -> Any | None:
        """The token table that a head shares its values with, also where an exporter copied it."""
        if not linear.is_head:
            return None
        for table in self._tables:
            if tuple(table.const_value.shape) == (linear.columns, linear.rows) and np.array_equal(
                table.const_value.numpy(), linear.matrix().T
            ):
                return table
        return None

    def _weights(self, table: Any, matrix: NDArray[np.float32], bits: int) -> _Weights:
        """The quantized table, made once for everybody who uses it at these bits."""
        key = (id(table), bits)
        if key not in self._shared:
            blocks = self._quantize(matrix, bits, whole=True)
            self._shared[key] = self._add(f"{table.name}_Q{bits}", blocks, flat=True)
        return self._shared[key]

    def _add(self, name: str, blocks: Blocks, *, flat: bool) -> _Weights:
        rows, count = blocks.scales.shape
        packed = blocks.packed.reshape(rows, -1) if flat else blocks.packed
        zero_points = blocks.zero_points
        return _Weights(
            data=new_weight(self._model, name, packed),
            scales=new_weight(self._model, f"{name}_scales", blocks.scales),
            zero_points=None
            if zero_points is None
            else new_weight(self._model, f"{name}_zero_points", zero_points),
            blocks=count,
            block_size=blocks.block_size,
        )


def embedding_blocks(matrix: NDArray[np.float32], bits: int, *, whole: bool) -> Blocks:
    """Quantize a token table where only the products' form was chosen by the user."""
    size = whole_block_size(matrix.shape[1], 32) if whole else 32
    return quantize_blocks(matrix, bits=bits, block_size=size, is_symmetric=True, algorithm="rtn")
