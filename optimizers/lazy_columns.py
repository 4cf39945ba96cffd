"""A matrix in signed bytes with one scale per column, as weights that are made when written.

Owns going through the matrix a few columns at a time, so that it is never in memory in float32.
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

Quantize = Callable[[NDArray[np.float32]], tuple[NDArray[np.int8], NDArray[np.float32]]]
"""Rounds a matrix (K, N), each column by itself: gives bytes (K, N) and scales (N,)."""


class LazyColumns:
    """A matrix (K, N) that becomes bytes and scales.

    Args:
        columns: It as (N, K), read as it is asked for.
        quantize: Rounds a few columns.
    """

    def __init__(self, columns: Rows, quantize: Quantize) -> None:
        self._columns = columns
        self._quantize = quantize
        self._parts = MadeTogether(self._make)

    def add_bytes(self, model: Any, name: str) -> Any:
        """Add the bytes (K, N) as an initializer."""
        import onnx_ir

        count, height = self._columns.shape
        shape, dtype = (height, count), onnx_ir.DataType.INT8
        return add_lazy_weight(model, name, lambda: self._parts.read("bytes"), shape, dtype)

    def add_scales(self, model: Any, name: str) -> Any:
        """Add the scales (N,) as an initializer."""
        import onnx_ir

        shape, dtype = (self._columns.shape[0],), onnx_ir.DataType.FLOAT
        return add_lazy_weight(model, name, lambda: self._parts.read("scales"), shape, dtype)

    def _make(self) -> dict[str, NDArray[Any]]:
        count, height = self._columns.shape
        values, scales = np.empty((height, count), np.int8), np.empty(count, np.float32)
        for part in iterate_blocks(count, max(1, _AT_ONCE // height)):
            values[:, part], scales[part] = self._quantize(self._columns[part].T)
        return {"bytes": values, "scales": scales}
