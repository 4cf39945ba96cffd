"""The key-value cache: lazily committed memory of all slots of one session.

Owns one anonymous mapping per layer for keys and one for values, shaped
``(slots, heads, max_length, dim)``, float32 or int8. A page is committed when its first token is
written and given back by ``release``. Knows nothing of ONNX Runtime or of who owns a slot.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.manifest import KvLayer

_MAP_NORESERVE = 0x4000  # Linux; the mmap module names it from Python 3.13 on


@dataclass(frozen=True, slots=True)
class KvTensor:
    """One layer's keys or values, and where they lie."""

    past: str
    present: str
    memory: mmap.mmap
    array: NDArray[Any]  # (slots, heads, max_length, dim), float32 or int8

    @property
    def slot_bytes(self) -> int:
        """Bytes from one slot's beginning to the next."""
        return self.array.strides[0]


class KvCache:
    """Memory for ``slots`` sequences of up to ``max_length`` tokens."""

    def __init__(self, layers: Sequence[KvLayer], *, slots: int, max_length: int) -> None:
        self.slots = slots
        self.max_length = max_length
        self.tensors: list[KvTensor] = []
        for layer in layers:
            key_shape = (slots, layer.heads, max_length, layer.key_dim)
            value_shape = (slots, layer.heads, max_length, layer.value_dim)
            dtype = np.dtype(layer.dtype)
            self.tensors.append(_map(layer.past_key, layer.present_key, key_shape, dtype))
            self.tensors.append(_map(layer.past_value, layer.present_value, value_shape, dtype))
        self._written = [0] * slots  # tokens of each slot that may have committed memory

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token of one sequence takes over all layers."""
        return sum(t.array.shape[1] * t.array.shape[3] * t.array.itemsize for t in self.tensors)

    def wrote(self, slot: int, length: int) -> None:
        """Note that the slot's first ``length`` tokens may be committed now."""
        self._written[slot] = max(self._written[slot], length)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot over another's."""
        for tensor in self.tensors:
            tensor.array[target, :, :length] = tensor.array[source, :, :length]
        self.wrote(target, length)

    def release(self, slot: int, keep: int = 0) -> None:
        """Give back the pages of a slot that lie wholly beyond its first ``keep`` tokens."""
        written = self._written[slot]
        if keep >= written:
            return
        for tensor in self.tensors:
            _, heads, max_length, dim = tensor.array.shape
            token = dim * tensor.array.itemsize
            head_bytes = max_length * token
            begin = slot * tensor.slot_bytes
            for head in range(heads):
                first = begin + head * head_bytes
                _give_back(tensor.memory, first + keep * token, first + written * token)
        self._written[slot] = keep


def _map(
    past: str, present: str, shape: tuple[int, int, int, int], dtype: np.dtype[Any]
) -> KvTensor:
    size = int(np.prod(shape)) * dtype.itemsize
    # Private, or madvise frees nothing; not reserved, since most of it is never touched.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    # With huge pages one token could commit 2 MB per head.
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return KvTensor(past, present, memory, np.frombuffer(memory, dtype).reshape(shape))


def _give_back(memory: mmap.mmap, begin: int, end: int) -> None:
    """Free whole pages inside [begin, end) bytes; neighbours share the partial ones."""
    page = mmap.PAGESIZE
    begin = -(-begin // page) * page
    end = end // page * page
    if end > begin:
        memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)
