"""Quantized weights of a graph that are made when they are written, and forgotten then.

A graph in which every matrix is quantized thus takes up one matrix at a time. Owns the tensors that
stand for a matrix's blocks. Knows nothing of operators, or of how blocks are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import BugError
from optimizers.block_quantization import Blocks, Form, Part


@dataclass(slots=True)
class LazyBlocks:
    """Blocks of a known form.

    Attributes:
        form: What they will look like.
        make: Makes them.
    """

    form: Form
    make: Callable[[], Blocks]
    _made: Blocks | None = field(default=None, init=False)
    _unread: set[Part] = field(default_factory=set, init=False)

    def read(self, part: Part) -> NDArray[Any]:
        """One part; the blocks are kept until each part was read once."""
        if self._made is None:
            self._made = self.make()
            self._unread = set(self.form.parts)
        found: NDArray[Any] | None = getattr(self._made, part)
        if found is None:
            raise BugError(f"Blocks were made without the {part} that they should have.")
        self._unread.discard(part)
        if not self._unread:
            self._made = None
        return found


def add_lazy_weight(
    model: Any, name: str, blocks: LazyBlocks, part: Part, *, flat: bool = False
) -> Any:
    """Add a part of the blocks as an initializer; ``flat``: a row's bytes are one dimension."""
    import onnx_ir

    rows, *dims = blocks.form.shape(part)
    shape = (rows, int(np.prod(dims))) if flat else (rows, *dims)
    dtype = onnx_ir.DataType.FLOAT if part == "scales" else onnx_ir.DataType.UINT8
    tensor = onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(blocks.read(part).reshape(shape), name=name),
        dtype=dtype,
        shape=onnx_ir.Shape(shape),
        name=name,
    )
    kind = onnx_ir.TensorType(dtype)
    value = onnx_ir.Value(name=name, const_value=tensor, type=kind, shape=tensor.shape)
    model.graph.register_initializer(value)
    return value
