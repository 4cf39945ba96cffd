"""Puts integer products with one scale per row into an ONNX graph.

Owns the arithmetic: a row x is rounded to u = round(x / s) + 128 with s = max|x| / 127, a column of
the weight to signed bytes with its own scale, and the product is s * scale * sum((u - 128) * w).
Knows nothing of which layers are to be replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizers.errors import StageError
from optimizers.lazy_columns import LazyColumns
from optimizers.linears import Linear, new_weight, replace_node

_DOMAIN = "com.microsoft"
_LARGEST = 127
_ZERO_POINT = 128
_SMALLEST = 1e-12  # of a row's maximum; a row of zeros must not divide by zero


@dataclass(frozen=True, slots=True)
class _Rounded:
    """An input as unsigned bytes (..., K), and its scales (..., 1)."""

    bytes: Any
    scales: Any


class IntegerGraph:
    """A graph (``onnx_ir.Model``) whose products are replaced one by one."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._rounded: dict[int, _Rounded] = {}
        self._constants: dict[str, Any] = {}

    def replace_linear(self, linear: Linear) -> None:
        """Turn a product into ``MatMulIntegerToFloat`` and a product with the rows' scales."""
        import onnx_ir

        columns = LazyColumns(linear.outputs(), quantize_columns)
        name = linear.weight.name
        rounded = self._round(linear)
        product = onnx_ir.node(
            "MatMulIntegerToFloat",
            [
                rounded.bytes,
                columns.add_bytes(self._model, f"{name}_int8"),
                self._constant("quantize.one", np.array(1.0, dtype=np.float32)),
                columns.add_scales(self._model, f"{name}_scales"),
                self._constant("quantize.zero_point", np.array(_ZERO_POINT, dtype=np.uint8)),
                # Not shared: converting weights to unsigned while loading rewrites it per product.
                new_weight(self._model, f"{name}_zero_point", np.array(0, dtype=np.int8)),
            ],
            domain=_DOMAIN,
            name=linear.node.name,
        )
        scaled = onnx_ir.node("Mul", [product.outputs[0], rounded.scales])
        nodes = [product, scaled]
        if linear.bias is not None:
            nodes.append(onnx_ir.node("Add", [scaled.outputs[0], linear.bias]))
        replace_node(linear.node, nodes)

    def _round(self, linear: Linear) -> _Rounded:
        """Round a product's input, once for all products that share it."""
        import onnx_ir

        value = linear.node.inputs[0]
        if id(value) in self._rounded:
            return self._rounded[id(value)]
        magnitude = onnx_ir.node("Abs", [value])
        axis = self._constant("quantize.last_axis", np.array([-1], dtype=np.int64))
        largest = onnx_ir.node("ReduceMax", [magnitude.outputs[0], axis], {"keepdims": 1})
        floor = self._constant("quantize.smallest", np.array(_SMALLEST, dtype=np.float32))
        bounded = onnx_ir.node("Max", [largest.outputs[0], floor])
        share = self._constant("quantize.share", np.array(1 / _LARGEST, dtype=np.float32))
        scales = onnx_ir.node("Mul", [bounded.outputs[0], share])
        divided = onnx_ir.node("Div", [value, scales.outputs[0]])
        unit = self._constant("quantize.one", np.array(1.0, dtype=np.float32))
        zero = self._constant("quantize.zero_point", np.array(_ZERO_POINT, dtype=np.uint8))
        quantized = onnx_ir.node("QuantizeLinear", [divided.outputs[0], unit, zero])
        nodes = [magnitude, largest, bounded, scales, divided, quantized]
        linear.node.graph.insert_before(linear.node, nodes)
        rounded = _Rounded(bytes=quantized.outputs[0], scales=scales.outputs[0])
        self._rounded[id(value)] = rounded
        return rounded

    def _constant(self, name: str, array: NDArray[Any]) -> Any:
        if name not in self._constants:
            self._constants[name] = new_weight(self._model, name, array)
        return self._constants[name]


def quantize_columns(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix (K, N) to signed bytes with one scale (N,) per column.

    Raises:
        StageError: A zero would come back as something else.
    """
    scales = np.maximum(np.abs(matrix).max(axis=0), _SMALLEST).astype(np.float32) / _LARGEST
    values = np.clip(np.rint(matrix / scales), -_LARGEST, _LARGEST).astype(np.int8)
    if np.any(values[matrix == 0]):
        raise StageError(
            "Quantization would turn exact zeros into other values.",
            remedy="Choose another method of quantize, or leave prune out.",
        )
    return np.ascontiguousarray(values), scales
