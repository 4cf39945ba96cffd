"""The graph for prompts beside a quantized one: the same model, computed in int8 per row.

Owns what such a graph has of the whole: it only extends the cache, unless it is to give logits as
well. What it has in common with the other graph (tables of embeddings, norms, a head) is not stored
again but read from the other one's file. Knows nothing of when it is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.manifest import GraphSpec
from optimizers import linears
from optimizers.integer_graph import IntegerGraph
from optimizers.publish import PROMPTS, PROMPTS_WEIGHTS
from optimizers.weight_files import INLINE_BYTES, move_out


@dataclass(frozen=True, slots=True)
class Other:
    """The graph for generated tokens, which ``model.onnx`` was written from.

    Attributes:
        model: An ``onnx_ir.Model``.
        tables: What its look-ups of embeddings became, in their order; empty where they stayed.
    """

    model: Any
    tables: Sequence[Any]


def write_prompt_graph(
    model: Any,
    spec: GraphSpec,
    target: Path,
    other: Other,
    *,
    scores: bool,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write ``prompts.onnx`` beside the finished ``model.onnx`` of a folder.

    Args:
        model: A copy (``clone``) of the float32 graph that both come from, edited here.
        spec: How that is run.
        target: Where the other graph lies, and this one goes.
        other: Lends its embeddings and its head.
        scores: Whether it gives logits, and what is computed from them, as well.
        progress: Told how many of the weights (0..1) are written.
    """
    from onnx_ir.passes import common

    looked_up = linears.find_embeddings(model)
    if not scores:
        _keep_cache_alone(model, spec)
    found = linears.find_linears(model)
    graph = IntegerGraph(model)
    for linear in found:
        if not linear.is_head:
            graph.replace_linear(linear)
    for node, twin in zip(looked_up, other.tables, strict=bool(other.tables)):
        if node.graph is not None:  # else the cache needs none of it
            inputs = [_own(model, twin.inputs[0]), node.inputs[1]]
            inputs += [_own(model, value) for value in twin.inputs[2:]]
            linears.replace_node(node, [_like(twin, inputs, node.name)])
    head = next((linear for linear in found if linear.is_head), None)
    if head is not None:
        _adopt_head(model, head, other.model)
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports.setdefault("com.microsoft", 1)
    save_prompt_graph(model, target, other.model, progress)


def _adopt_head(model: Any, head: linears.Linear, other: Any) -> None:
    """Give a graph the head that the other one has, of the same weights."""
    import onnx_ir

    heads = linears.find_heads(other)
    node = next(node for node in other.graph if id(node) in heads)
    if node.op_type != "MatMulNBits":
        return  # it was left as it is

    packed, nodes = node.inputs[1], []
    if (reshape := packed.producer()) is None:
        weight = _own(model, packed)
    else:  # a table that it shares with the embeddings
        nodes.append(onnx_ir.node("Reshape", [_own(model, value) for value in reshape.inputs]))
        weight = nodes[0].outputs[0]
    operands = [_own(model, value) for value in node.inputs[2:]]
    product = _like(node, [head.node.inputs[0], weight, *operands], head.node.name)
    nodes.append(product)
    if head.bias is not None:
        nodes.append(onnx_ir.node("Add", [product.outputs[0], head.bias]))
    linears.replace_node(head.node, nodes)


def _own(model: Any, value: Any) -> Any:
    """Give a graph the initializer of another one, the same tensor under the same name."""
    import onnx_ir

    if value.name not in model.graph.initializers:
        adopted = onnx_ir.Value(
            name=value.name, const_value=value.const_value, type=value.type, shape=value.shape
        )
        model.graph.register_initializer(adopted)
    return model.graph.initializers[value.name]


def _like(node: Any, inputs: list[Any], name: str | None) -> Any:
    """The same operator as another graph's, with integers for attributes."""
    import onnx_ir

    attributes = {key: node.attributes.get_int(key) for key in node.attributes}
    return onnx_ir.node(node.op_type, inputs, attributes, domain=node.domain, name=name)


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


def save_prompt_graph(
    model: Any, folder: Path, other: Any, progress: Callable[[float], None] | None = None
) -> None:
    """Write the graph, and of its weights those that ``model.onnx`` does not have there.

    Args:
        model: The graph for prompts.
        folder: Holds ``model.onnx``.
        other: What that was written from.
        progress: Told how many of the weights (0..1) are written.
    """
    import onnx_ir

    beside, written = other.graph.initializers, linears.load(folder).graph.initializers
    own = []
    for name, value in model.graph.initializers.items():
        if value.const_value.nbytes < INLINE_BYTES:
            continue
        found = written[name].const_value if name in written else None
        if isinstance(found, onnx_ir.ExternalTensor) and _same(
            beside[name].const_value, value.const_value
        ):
            value.const_value = found
        else:
            own.append(value)
    move_out(own, folder, PROMPTS_WEIGHTS, progress or (lambda _: None))
    onnx_ir.save(model, folder / PROMPTS)


def _same(one: Any, other: Any) -> bool:
    """Whether two tensors are one, told without making or reading what is not in memory."""
    import onnx_ir

    if one is other:
        return True
    if isinstance(one, onnx_ir.ExternalTensor) and isinstance(other, onnx_ir.ExternalTensor):
        return _place(one) == _place(other)
    if not (isinstance(one, onnx_ir.Tensor) and isinstance(other, onnx_ir.Tensor)):
        return False
    return bool(one.dtype == other.dtype and np.array_equal(one.numpy(), other.numpy()))


def _place(tensor: Any) -> tuple[object, ...]:
    """Which numbers of which file these are."""
    place = tensor.path, tensor.offset, tensor.length
    return *place, tensor.dtype, tuple(tensor.shape)
