"""Puts integer products with one scale per row into an ONNX graph.

Owns the arithmetic. A column of the weight is rounded to signed bytes w with its own scale. A row
x is rounded to u = round(x / s) + z, and the product is s * scale * sum((u - z) * w). Most rows lie
about zero: z = 128, and s = max|x| / 127. A row can have a zero point of its own instead, with
s = (max x - min x) / 255: the kernel subtracts 128 all the same, and (128 - z) times what the
column sums up to is added behind it. Rows have one where a product gives no more numbers than it
reads. Knows nothing of which layers are to be replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizers.errors import StageError
from optimizers.lazy_columns import Columns, LazyColumns, Quantize, quantize_a_few_at_a_time
from optimizers.linears import Linear, new_weight, replace_node

_DOMAIN = "com.microsoft"
_LARGEST = 127
_ZERO_POINT = 128
_STEPS = 255
_SMALLEST = 1e-12  # of a row's maximum or range; a row of zeros must not divide by zero
_BLOCKED = 21  # the first version of the operators in which QuantizeLinear has scales per block


@dataclass(frozen=True, slots=True)
class _Rounded:
    """An input as unsigned bytes (..., K), its scales (..., 1), and 128 - z (..., 1) or None."""

    bytes: Any
    scales: Any
    shift: Any | None


class IntegerGraph:
    """A graph (``onnx_ir.Model``) whose products are replaced one by one."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._rounded: dict[int, _Rounded] = {}
        self._constants: dict[str, Any] = {}

    def replace_linear(self, linear: Linear, quantize: Quantize | None = None) -> None:
        """Turn a product into ``MatMulIntegerToFloat`` and a product with the rows' scales.

        Args:
            linear: To be replaced.
            quantize: Rounds the weight, at once; None: to the nearest, when it is written.
        """
        import onnx_ir

        name = linear.weight.name
        rounded = self._round(linear)
        columns = self._columns(linear, quantize, with_sums=rounded.shift is not None)
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
        nodes = [product]
        if rounded.shift is not None:
            sums = columns.add_sums(self._model, f"{name}_sums")
            shifted = onnx_ir.node("Mul", [rounded.shift, sums])
            nodes += [shifted, onnx_ir.node("Add", [product.outputs[0], shifted.outputs[0]])]
        nodes.append(onnx_ir.node("Mul", [nodes[-1].outputs[0], rounded.scales]))
        if linear.bias is not None:
            nodes.append(onnx_ir.node("Add", [nodes[-1].outputs[0], linear.bias]))
        replace_node(linear.node, nodes)

    @staticmethod
    def _columns(linear: Linear, quantize: Quantize | None, *, with_sums: bool) -> LazyColumns:
        def lazily() -> Columns:
            return quantize_a_few_at_a_time(linear.outputs(), quantize_columns)

        shape = (linear.rows, linear.columns)
        if quantize is None:
            return LazyColumns(shape, lazily, with_sums=with_sums)
        made = quantize(linear.matrix())
        return LazyColumns(shape, lambda: made, with_sums=with_sums)

    def _round(self, linear: Linear) -> _Rounded:
        """Round a product's input, once for all products that share it; the first decides how."""
        value = linear.node.inputs[0]
        if id(value) not in self._rounded:
            # What zero points cost grows with the columns, what rounding costs with the rows.
            pays = linear.columns <= linear.rows
            can = int(self._model.opset_imports[""]) >= _BLOCKED
            rounded, nodes = (
                self._about_a_zero_point(value, linear.rows)
                if pays and can
                else self._about_zero(value)
            )
            linear.node.graph.insert_before(linear.node, nodes)
            self._rounded[id(value)] = rounded
        return self._rounded[id(value)]

    def _about_zero(self, value: Any) -> tuple[_Rounded, list[Any]]:
        """The zero point is 128; gives the nodes too."""
        import onnx_ir

        magnitude = onnx_ir.node("Abs", [value])
        largest = onnx_ir.node("ReduceMax", [magnitude.outputs[0], self._axis], {"keepdims": 1})
        bounded = onnx_ir.node("Max", [largest.outputs[0], self._floor])
        share = self._constant("quantize.share", np.array(1 / _LARGEST, dtype=np.float32))
        scales = onnx_ir.node("Mul", [bounded.outputs[0], share])
        divided = onnx_ir.node("Div", [value, scales.outputs[0]])
        unit = self._constant("quantize.one", np.array(1.0, dtype=np.float32))
        zero = self._constant("quantize.zero_point", np.array(_ZERO_POINT, dtype=np.uint8))
        quantized = onnx_ir.node("QuantizeLinear", [divided.outputs[0], unit, zero])
        nodes = [magnitude, largest, bounded, scales, divided, quantized]
        return _Rounded(quantized.outputs[0], scales.outputs[0], None), nodes

    def _about_a_zero_point(self, value: Any, width: int) -> tuple[_Rounded, list[Any]]:
        """Each row of ``width`` numbers has its zero point; gives the nodes too."""
        import onnx_ir

        zero = self._constant("quantize.zero", np.array(0.0, dtype=np.float32))
        largest = onnx_ir.node("ReduceMax", [value, self._axis], {"keepdims": 1})
        smallest = onnx_ir.node("ReduceMin", [value, self._axis], {"keepdims": 1})
        # Zero itself is always one of the steps, and so comes back as zero.
        above = onnx_ir.node("Max", [largest.outputs[0], zero])
        below = onnx_ir.node("Min", [smallest.outputs[0], zero])
        range_ = onnx_ir.node("Sub", [above.outputs[0], below.outputs[0]])
        bounded = onnx_ir.node("Max", [range_.outputs[0], self._floor])
        step = self._constant("quantize.step", np.array(1 / _STEPS, dtype=np.float32))
        scales = onnx_ir.node("Mul", [bounded.outputs[0], step])
        steps_below = onnx_ir.node("Div", [below.outputs[0], scales.outputs[0]])
        minus_zero_points = onnx_ir.node("Round", [steps_below.outputs[0]])
        zero_points = onnx_ir.node("Neg", [minus_zero_points.outputs[0]])
        as_bytes = onnx_ir.node("Cast", [zero_points.outputs[0]], {"to": onnx_ir.DataType.UINT8})
        # A row is one block: the only way to give each its own scale whatever the rank is.
        quantized = onnx_ir.node(
            "QuantizeLinear",
            [value, scales.outputs[0], as_bytes.outputs[0]],
            {"axis": -1, "block_size": width},
        )
        middle = self._constant("quantize.middle", np.array(_ZERO_POINT, dtype=np.float32))
        shift = onnx_ir.node("Add", [minus_zero_points.outputs[0], middle])
        nodes = [largest, smallest, above, below, range_, bounded, scales, steps_below]
        nodes += [minus_zero_points, zero_points, as_bytes, quantized, shift]
        return _Rounded(quantized.outputs[0], scales.outputs[0], shift.outputs[0]), nodes

    @property
    def _axis(self) -> Any:
        return self._constant("quantize.last_axis", np.array([-1], dtype=np.int64))

    @property
    def _floor(self) -> Any:
        return self._constant("quantize.smallest", np.array(_SMALLEST, dtype=np.float32))

    def _constant(self, name: str, array: NDArray[Any]) -> Any:
        if name not in self._constants:
            self._constants[name] = new_weight(self._model, name, array)
        return self._constants[name]


def quantize_columns(matrix: NDArray[np.float32]) -> Columns:
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
