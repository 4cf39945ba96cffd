"""Folds what a trace leaves to be done at run time into the weights.

Knows nothing of decoders.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def fold_transposes(model: Any) -> None:
    """Store weights the way that matrix products read them.

    A product of three dimensions with a ``Transpose`` of a weight would keep the weight, and make
    its transposed copy whenever the graph is loaded.
    """
    made: dict[str, Any] = {}
    for node in list(model.graph):
        if node.op_type != "Transpose":
            continue
        source = node.inputs[0]
        if source.const_value is None or len(source.shape) != 2:
            continue
        if source.name not in made:
            made[source.name] = _transposed(model.graph, source)
        output = node.outputs[0]
        for user, place in list(output.uses()):
            user.replace_input_with(place, made[source.name])
        if not output.is_graph_output():
            model.graph.remove(node, safe=True)


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
