"""Joins quantized products of one input into one, such as a feed-forward layer's gate and up.

A product's columns do not depend on each other, so the result is the same; one row is computed
faster, since threads are woken once for what they were woken for twice. Owns the joined weights and
the split behind them. Knows nothing of how blocks are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

JOIN = "+"
"""Between the names of the products that one stands for."""
_PRODUCT = "MatMulNBits"
_JOINED = "N"  # the attribute that tells how many columns there are; all others must agree


def join_products(model: Any) -> int:
    """Join what can be, in place.

    Gives how many products there are fewer.

    Args:
        model: An ``onnx_ir.Model``; weights that are made when they are asked for stay so.
    """
    fewer = 0
    for products in [*_groups(model.graph)]:
        _join(model, products)
        fewer += len(products) - 1
    return fewer


def _groups(graph: Any) -> Iterator[list[Any]]:
    """Products of one input whose weights are alike but for the number of columns."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for node in graph:
        if node.op_type == _PRODUCT and all(_is_own(value) for value in node.inputs[1:]):
            numbers = {name: node.attributes.get_int(name) for name in node.attributes}
            numbers.pop(_JOINED)
            key = (id(node.inputs[0]), len(node.inputs), *sorted(numbers.items()))
            found.setdefault(key, []).append(node)
    yield from (group for group in found.values() if len(group) > 1)


def _is_own(value: Any) -> bool:
    """Whether a constant belongs to one product alone."""
    return value is not None and value.is_initializer() and len(value.uses()) == 1


def _join(model: Any, products: Sequence[Any]) -> None:
    import onnx_ir

    first = products[0]
    sizes = [node.attributes.get_int(_JOINED) for node in products]
    weights = zip(*(node.inputs[1:] for node in products), strict=True)
    attributes = {name: first.attributes.get_int(name) for name in first.attributes}
    joined = onnx_ir.node(
        _PRODUCT,
        [first.inputs[0], *(_stacked(model, values) for values in weights)],
        {**attributes, _JOINED: sum(sizes)},
        domain=first.domain,
        name=JOIN.join(node.name for node in products),
    )
    split = onnx_ir.node(
        "Split",
        [joined.outputs[0], _sizes(model, sizes)],
        {"axis": -1},
        num_outputs=len(products),
    )
    onnx_ir.convenience.replace_nodes_and_values(
        model.graph,
        first,
        products,
        [joined, split],
        [node.outputs[0] for node in products],
        split.outputs,
    )


def _stacked(model: Any, values: Sequence[Any]) -> Any:
    """The rows of some constants, one constant's after the other's."""
    import onnx_ir

    tensors = [value.const_value for value in values]
    rows = sum(int(tensor.shape[0]) for tensor in tensors)
    name = f"{values[0].name}_joined"
    tensor = onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(np.concatenate([each.numpy() for each in tensors]), name=name),
        dtype=tensors[0].dtype,
        shape=onnx_ir.Shape([rows, *tensors[0].shape[1:]]),
        name=name,
    )
    return _added(model, tensor)


def _sizes(model: Any, sizes: Sequence[int]) -> Any:
    """Of the parts; one constant for all splits that are alike."""
    import onnx_ir

    name = "joined." + ".".join(str(size) for size in sizes)
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    return _added(model, onnx_ir.tensor(np.array(sizes, dtype=np.int64), name=name))


def _added(model: Any, tensor: Any) -> Any:
    import onnx_ir

    kind = onnx_ir.TensorType(tensor.dtype)
    value = onnx_ir.Value(name=tensor.name, const_value=tensor, type=kind, shape=tensor.shape)
    model.graph.register_initializer(value)
    return value
