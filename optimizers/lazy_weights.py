"""Weights of a graph that are made when they are written, and forgotten then.

A graph in which every matrix is quantized thus takes up one matrix at a time. Owns arrays that come
into being together, and the tensors that stand for one of them. Knows nothing of what is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray


@dataclass(slots=True)
class MadeTogether:
    """Arrays of which none is made without the others.

    Attributes:
        make: Gives all of them, by name.
    """

    make: Callable[[], Mapping[str, NDArray[Any]]]
    _unread: dict[str, NDArray[Any]] = field(default_factory=dict, init=False)

    def read(self, name: str) -> NDArray[Any]:
        """One of them; each of the others is kept until it was read as well."""
        if name not in self._unread:
            self._unread = dict(self.make())
        return self._unread.pop(name)


def add_lazy_weight(
    model: Any, name: str, make: Callable[[], NDArray[Any]], shape: tuple[int, ...], dtype: Any
) -> Any:
    """Add an initializer of that shape and ``onnx_ir.DataType``, made each time it is read."""
    import onnx_ir

    tensor = onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(make().reshape(shape), name=name),
        dtype=dtype,
        shape=onnx_ir.Shape(shape),
        name=name,
    )
    kind = onnx_ir.TensorType(dtype)
    value = onnx_ir.Value(name=name, const_value=tensor, type=kind, shape=tensor.shape)
    model.graph.register_initializer(value)
    return value
