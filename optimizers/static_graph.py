"""Puts integer products whose inputs have one constant scale each into an ONNX graph.

Owns the arithmetic: an input is rounded to u = round(x / s) + z with the s and z that a text gave,
a column of the weight to signed bytes with its own scale, and the product is
s * scale * sum((u - z) * w). Nothing of it looks at other rows. Knows nothing of which layers are
to be replaced, or of texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optimizers.activation_ranges import Rounding
from optimizers.integer_graph import quantize_columns
from optimizers.linears import Linear, new_weight, replace_node

_DOMAIN = "com.microsoft"


def replace_products(model: Any, products: Sequence[Linear], rounding: Rounding) -> None:
    """Turn products of one input into ``QuantizeLinear`` and ``MatMulIntegerToFloat``.

    Args:
        model: An ``onnx_ir.Model``, changed in place.
        products: All of the same input.
        rounding: Of that input.
    """
    import onnx_ir

    value = products[0].node.inputs[0]
    scale = new_weight(model, f"{value.name}_scale", np.array(rounding.scale, np.float32))
    zero_point = new_weight(
        model, f"{value.name}_zero_point", np.array(rounding.zero_point, np.uint8)
    )
    rounded = onnx_ir.node("QuantizeLinear", [value, scale, zero_point])
    products[0].node.graph.insert_before(products[0].node, [rounded])
    for linear in products:
        values, scales = quantize_columns(linear.matrix())
        name = linear.weight.name
        operands = [
            rounded.outputs[0],
            new_weight(model, f"{name}_int8", values),
            scale,
            new_weight(model, f"{name}_scales", scales),
            zero_point,
            # Not shared: converting weights to unsigned while loading rewrites it per product.
            new_weight(model, f"{name}_zero_point", np.array(0, dtype=np.int8)),
        ]
        if linear.bias is not None:
            operands.append(linear.bias)
        product = onnx_ir.node(
            "MatMulIntegerToFloat", operands, domain=_DOMAIN, name=linear.node.name
        )
        replace_node(linear.node, [product])
