"""A constant of a graph that is read from a model's own weights when it is asked for.

Owns the conversion to float32, a piece at a time. Knows nothing of graphs or of files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from optimizers.rows import iterate_blocks

_AT_ONCE = 1 << 20  # elements that are float32 at a time


class SourceTensor(ir.LazyTensor):  # type: ignore[misc]
    """A torch tensor of any float type, or a view of one, as an ``onnx_ir`` tensor of float32.

    Args:
        tensor: Mapped, so that it takes up no memory before it is read.
        name: Of the constant.
        forget: Called when a part was read: gives the memory back that this took.
    """

    def __init__(self, tensor: torch.Tensor, name: str, forget: Callable[[], None]) -> None:
        super().__init__(
            lambda: ir.tensor(_read(tensor, forget), name=name),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(list(tensor.shape)),
            name=name,
        )
        self._source = tensor
        self._forget = forget

    def turned(self, name: str) -> SourceTensor:
        """The same matrix transposed, of the same bytes."""
        return SourceTensor(self._source.T, name, self._forget)

    def rows(self, *, is_turned: bool) -> SourceRows:
        """The matrix, or its transpose, to be read in parts."""
        return SourceRows(self._source.T if is_turned else self._source, self._forget)

    def tofile(self, file: IO[bytes]) -> None:
        """Write it, a piece at a time."""
        if self._source.ndim != 2:
            super().tofile(file)
            return
        rows, columns = self._source.shape
        for part in iterate_blocks(rows, max(1, _AT_ONCE // max(columns, 1))):
            file.write(_read(self._source[part], self._forget).data)


class SourceRows:
    """Rows of a matrix that are read when they are asked for (a ``Rows``)."""

    def __init__(self, tensor: torch.Tensor, forget: Callable[[], None]) -> None:
        self._tensor = tensor
        self._forget = forget

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K)."""
        return tuple(self._tensor.shape)

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        """Read some."""
        return _read(self._tensor[part], self._forget)

    @property
    def place(self) -> tuple[object, ...]:
        """Which numbers these are, told without reading them."""
        tensor = self._tensor
        return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()

    def is_same(self, other: object) -> bool:
        """Whether these are the same numbers in the same place."""
        return isinstance(other, SourceRows) and self.place == other.place


def _read(tensor: torch.Tensor, forget: Callable[[], None]) -> NDArray[np.float32]:
    read: NDArray[np.float32] = tensor.to(torch.float32).contiguous().numpy()
    forget()
    return read
