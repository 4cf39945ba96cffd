"""A matrix that is read a few rows at a time, as float32, wherever its numbers lie.

Owns how the constants of a graph become such matrices. Knows nothing of who reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Rows(Protocol):
    """(N, K) numbers; an array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K)."""
        ...

    def __getitem__(self, part: slice, /) -> NDArray[np.float32]:
        """Some of the rows."""
        ...


def rows_of(tensor: Any, *, is_turned: bool) -> Rows:
    """See a constant (an ``onnx_ir`` tensor of two dimensions) as rows.

    Args:
        tensor: One that can read parts of itself (``rows``) is never read as a whole.
        is_turned: Its columns are the rows.
    """
    if hasattr(tensor, "rows"):
        rows: Rows = tensor.rows(is_turned=is_turned)
        return rows
    matrix: NDArray[np.float32] = tensor.numpy().astype(np.float32, copy=False)
    return matrix.T if is_turned else matrix


def are_equal(one: Rows, other: Rows, *, at_once: int) -> bool:
    """Compare two matrices, ``at_once`` rows after the other."""
    if hasattr(one, "is_same") and one.is_same(other):
        return True  # seen without reading them
    return one.shape == other.shape and all(
        np.array_equal(one[part], other[part]) for part in iterate_blocks(one.shape[0], at_once)
    )


def iterate_blocks(count: int, size: int) -> Iterator[slice]:
    """Cut ``count`` things into runs of at most ``size``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
