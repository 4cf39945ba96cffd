"""Folds what a trace leaves to be done at run time into the weights.

Knows nothing of decoders.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def fold_transposes(model: Any) -> None:
    """Store weights the way that matrix products read them.

    A product of three dimensions with a ``Transpose`` of a weight would keep the weight, and make
    its transposed copy whenever the graph is loaded. A weight that is read as it lies as well, such
    as a table of embeddings that a head shares, is stored once: the product is then one that reads
    it that way, ONNX Runtime's ``FusedMatMul``.
    """
    made: dict[str, Any] = {}
    for node in list(model.graph):
        if node.op_type != "Transpose":
            continue
        source, output = node.inputs[0], node.outputs[0]
        if source.const_value is None or len(source.shape) != 2:
            continue
        is_shared = any(user.op_type != "Transpose" for user, _ in source.uses())
        for user, place in list(output.uses()):
            if is_shared and user.op_type == "MatMul" and place == 1:
                _fuse(model, user, source)
                continue
            if source.name not in made:
                made[source.name] = _transposed(model.graph, source)
            user.replace_input_with(place, made[source.name])
        if not output.is_graph_output():
            model.graph.remove(node, safe=True)


def _fuse(model: Any, product: Any, weight: Any) -> None:
    """Have a product read a weight (N, K) as it lies."""
    import onnx_ir as ir

    fused = ir.node(
        "FusedMatMul",
        [product.inputs[0], weight],
        {"transB": 1},
        domain="com.microsoft",
        name=product.name,
    )
    ir.convenience.replace_nodes_and_values(
        model.graph, product, [product], [fused], product.outputs, fused.outputs
    )
    model.opset_imports.setdefault("com.microsoft", 1)


def _transposed(graph: Any, source: Any) -> Any:
    import onnx_ir as ir

    name = f"{source.name}.T"
    if hasattr(source.const_value, "turned"):
        return _registered(graph, source.const_value.turned(name))
    rows, columns = (int(dim) for dim in source.shape)
    tensor = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(source.const_value.numpy().T), name=name),
        dtype=source.const_value.dtype,
        shape=ir.Shape([columns, rows]),
        name=name,
    )
    return _registered(graph, tensor)


def _registered(graph: Any, tensor: Any) -> Any:
    import onnx_ir as ir

    kind = ir.TensorType(tensor.dtype)
    value = ir.Value(name=tensor.name, const_value=tensor, type=kind, shape=tensor.shape)
    graph.register_initializer(value)
    return value
