"""Gives the attention of a packed graph a key-value cache in int8.

Owns the operator's attributes and inputs for it. The kernel rounds keys and values when it writes
them and multiplies the integers with the scales in float32; nothing else of the graph changes.
Knows nothing of where scales come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.manifest import GraphSpec
from optimizers.attention import KEY_SCALE, VALUE_SCALE, Attention
from optimizers.kv_scales import CacheScales
from optimizers.linears import new_weight

_PAST, _PRESENT = 3, 1  # places of keys among inputs and outputs; values follow
_QUERY_SEQLENS = 16
_BITS = 8


def quantize_cache(
    model: Any, graph: GraphSpec, attentions: Sequence[Attention], scales: Sequence[CacheScales]
) -> GraphSpec:
    """Edit a model (``onnx_ir.Model``) in place; gives how it is run now."""
    for layer, (attention, of_layer) in enumerate(zip(attentions, scales, strict=True)):
        set_cache(model, attention.node, of_layer, f"kv_cache.{layer}")
    layers = tuple(layer.model_copy(update={"dtype": "int8"}) for layer in graph.layers)
    return graph.model_copy(update={"layers": layers})


def set_cache(model: Any, node: Any, scales: CacheScales, name: str) -> None:
    """Let one node read and write int8."""
    import onnx_ir

    node.resize_inputs(max(len(node.inputs), _QUERY_SEQLENS + 1))
    for offset, (place, kind, steps) in enumerate(
        ((KEY_SCALE, "k", scales.keys), (VALUE_SCALE, "v", scales.values))
    ):
        weight = new_weight(model, f"{name}.{kind}_scale", _per_channel(steps))
        node.replace_input_with(place, weight)
        for value in (node.inputs[_PAST + offset], node.outputs[_PRESENT + offset]):
            value.type = onnx_ir.TensorType(onnx_ir.DataType.INT8)
        attribute = f"{kind}_quant_type"
        node.attributes[attribute] = onnx_ir.AttrString(attribute, "PER_CHANNEL")
    node.attributes["kv_cache_bit_width"] = onnx_ir.AttrInt64("kv_cache_bit_width", _BITS)


def _per_channel(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1, kv_heads, 1, head_dim), as the operator wants them."""
    return np.ascontiguousarray(steps[None, :, None, :])
