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

Replace = Callable[[Any, linears.Linear | None, list[Any]], None]
"""Gives a model's head (if there is one to replace) and tables of embeddings their form."""


def write_prompt_graph(
    source: Path, spec: GraphSpec, target: Path, replace_rest: Replace, *, scores: bool
) -> None:
    """Write ``prompts.onnx`` beside the finished ``model.onnx`` of a folder.

    Args:
        source: Folder of the float32 graph that both come from.
        spec: How that is run.
        target: Where the other graph lies, and this one goes.
        replace_rest: Does with head and embeddings what was done in the other graph.
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
    head = next((linear for linear in found if linear.is_head), None)
    replace_rest(model, head, tables)
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports.setdefault("com.microsoft", 1)
    save_prompt_graph(model, target)


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
