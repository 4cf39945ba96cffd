"""A matrix in signed bytes with one scale per column, as weights that are made when written.

Owns going through the matrix a few columns at a time, so that it is never in memory in float32, and
what its columns sum up to.
Knows nothing of operators, or of how a column is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizers.lazy_weights import MadeTogether, add_lazy_weight
from optimizers.rows import Rows, iterate_blocks

_AT_ONCE = 1 << 18  # elements that are float32 at a time

Columns = tuple[NDArray[np.int8], NDArray[np.float32]]
"""Bytes (K, N) and scales (N,)."""
Quantize = Callable[[NDArray[np.float32]], Columns]
"""Rounds a matrix (K, N), each column by itself."""


class LazyColumns:
    """A matrix (K, N) that becomes bytes and scales.

    Args:
        shape: (K, N).
        make: Gives the bytes (K, N) and the scales (N,).
        with_sums: Whether the columns' sums are wanted too.
    """

    def __init__(
        self, shape: tuple[int, int], make: Callable[[], Columns], *, with_sums: bool = False
    ) -> None:
        self._shape = shape
        self._make = make
        self._with_sums = with_sums
        self._parts = MadeTogether(self._make_parts)

    def add_bytes(self, model: Any, name: str) -> Any:
        """Add the bytes (K, N) as an initializer."""
        import onnx_ir

        dtype = onnx_ir.DataType.INT8
        return add_lazy_weight(model, name, lambda: self._parts.read("bytes"), self._shape, dtype)

    def add_scales(self, model: Any, name: str) -> Any:
        """Add the scales (N,) as an initializer."""
        return self._add_vector(model, name, "scales")

    def add_sums(self, model: Any, name: str) -> Any:
        """Add what each column sums up to, (N,) float32, as an initializer."""
        return self._add_vector(model, name, "sums")

    def _add_vector(self, model: Any, name: str, part: str) -> Any:
        import onnx_ir

        shape, dtype = self._shape[1:], onnx_ir.DataType.FLOAT
        return add_lazy_weight(model, name, lambda: self._parts.read(part), shape, dtype)

    def _make_parts(self) -> dict[str, NDArray[Any]]:
        values, scales = self._make()
        parts: dict[str, NDArray[Any]] = {"bytes": values, "scales": scales}
        if self._with_sums:
            parts["sums"] = values.sum(axis=0, dtype=np.int32).astype(np.float32) * scales
        return parts


def quantize_a_few_at_a_time(columns: Rows, quantize: Quantize) -> Columns:
    """Round a matrix, given as (N, K), that is read as it is worked on."""
    count, height = columns.shape
    values, scales = np.empty((height, count), np.int8), np.empty(count, np.float32)
    for part in iterate_blocks(count, max(1, _AT_ONCE // height)):
        values[:, part], scales[part] = quantize(columns[part].T)
    return values, scales
