"""The graph for prompts beside a quantized one: the same model, computed in int8 per row.

Owns what such a graph has of the whole: it only extends the cache, unless it is to give logits as
well. What it has in common with the other graph (tables of embeddings, norms, a head) is not stored
again but read from the other one's file. Knows nothing of when it is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.manifest import GraphSpec
from optimizers import linears
from optimizers.integer_graph import IntegerGraph
from optimizers.publish import PROMPTS, PROMPTS_WEIGHTS

_INLINE_BYTES = 256  # smaller constants stay inside the graph
_ALIGNMENT = 64  # bytes; a vector load of a mapped weight never straddles a cache line

Replace = Callable[[Any, list[Any]], None]
"""Gives a model's tables of embeddings their form."""


def write_prompt_graph(
    source: Path, spec: GraphSpec, target: Path, replace_tables: Replace, *, scores: bool
) -> None:
    """Write ``prompts.onnx`` beside the finished ``model.onnx`` of a folder.

    Args:
        source: Folder of the float32 graph that both come from.
        spec: How that is run.
        target: Where the other graph lies, and this one goes.
        replace_tables: Does with embeddings what was done in the other graph.
        scores: Whether it gives logits, and what is computed from them, as well.
    """
    from onnx_ir.passes import common

    model = linears.load(source)
    if not scores:
        _keep_cache_alone(model, spec)
    found = linears.find_linears(model)
    tables = linears.find_embeddings(model)
    graph = IntegerGraph(model)
    for linear in found:
        if not linear.is_head:
            graph.replace_linear(linear)
    replace_tables(model, tables)
    head = next((linear for linear in found if linear.is_head), None)
    if head is not None:
        _adopt_head(model, head, linears.load(target))
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports.setdefault("com.microsoft", 1)
    save_prompt_graph(model, target)


def _adopt_head(model: Any, head: linears.Linear, other: Any) -> None:
    """Give a graph the head that the other one has, of the same weights."""
    import onnx_ir

    heads = linears.find_heads(other)
    node = next(node for node in other.graph if id(node) in heads)
    if node.op_type != "MatMulNBits":
        return  # it was left as it is

    def own(value: Any) -> Any:
        if value.name not in model.graph.initializers:
            adopted = onnx_ir.Value(
                name=value.name, const_value=value.const_value, type=value.type, shape=value.shape
            )
            model.graph.register_initializer(adopted)
        return model.graph.initializers[value.name]

    packed, nodes = node.inputs[1], []
    if (reshape := packed.producer()) is None:
        weight = own(packed)
    else:  # a table that it shares with the embeddings
        nodes.append(onnx_ir.node("Reshape", [own(value) for value in reshape.inputs]))
        weight = nodes[0].outputs[0]
    product = onnx_ir.node(
        node.op_type,
        [head.node.inputs[0], weight, *(own(value) for value in node.inputs[2:])],
        {name: node.attributes.get_int(name) for name in node.attributes},
        domain=node.domain,
        name=head.node.name,
    )
    nodes.append(product)
    if head.bias is not None:
        nodes.append(onnx_ir.node("Add", [product.outputs[0], head.bias]))
    linears.replace_node(head.node, nodes)


def load_prompt_graph(folder: Path) -> Any:
    """Read ``prompts.onnx``; weights stay on disk until they are asked for."""
    import onnx_ir

    return onnx_ir.load(folder / PROMPTS)


def _keep_cache_alone(model: Any, spec: GraphSpec) -> None:
    """Leave no output but the cache; nothing then computes what only logits need."""
    from onnx_ir.passes import common

    cache = {name for layer in spec.layers for name in (layer.present_key, layer.present_value)}
    for output in [*model.graph.outputs]:
        if output.name not in cache:
            model.graph.outputs.remove(output)
    common.RemoveUnusedNodesPass()(model)
    for value in [*model.graph.inputs]:
        if not value.uses():
            model.graph.inputs.remove(value)


def save_prompt_graph(model: Any, folder: Path) -> None:
    """Write the graph, and of its weights those that ``model.onnx`` does not have there."""
    import onnx_ir
    from onnx_ir import external_data

    others = linears.load(folder).graph.initializers
    own = []
    for name, value in model.graph.initializers.items():
        if value.const_value.nbytes < _INLINE_BYTES:
            continue
        other = others[name].const_value if name in others else None
        if isinstance(other, onnx_ir.ExternalTensor) and _same(other, value.const_value):
            value.const_value = other
        else:
            own.append(value)
    written = external_data.convert_tensors_to_external(
        [value.const_value for value in own],
        folder,
        PROMPTS_WEIGHTS,
        alignment=_ALIGNMENT,
        align_threshold=0,
    )
    for value, tensor in zip(own, written, strict=True):
        value.const_value = tensor
    onnx_ir.save(model, folder / PROMPTS)


def _same(one: Any, other: Any) -> bool:
    return bool(
        one.dtype == other.dtype
        and tuple(one.shape) == tuple(other.shape)
        and np.array_equal(one.numpy(), other.numpy())
    )
