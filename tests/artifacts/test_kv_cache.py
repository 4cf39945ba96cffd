"""The cache's memory: committed when written, given back when released."""

from __future__ import annotations

import mmap
from typing import Literal

import numpy as np
import psutil
import pytest

from artifacts.kv_cache import KvCache
from artifacts.manifest import KvLayer

Dtype = Literal["float32", "int8"]


def _layers(
    count: int = 4, heads: int = 2, dim: int = 64, dtype: Dtype = "float32"
) -> list[KvLayer]:
    return [
        KvLayer(
            past_key=f"past.{i}.key",
            past_value=f"past.{i}.value",
            present_key=f"present.{i}.key",
            present_value=f"present.{i}.value",
            heads=heads,
            key_dim=dim,
            value_dim=dim,
            dtype=dtype,
        )
        for i in range(count)
    ]


def _rss() -> int:
    return psutil.Process().memory_info().rss


def test_untouched_pages_cost_nothing_and_released_ones_come_back() -> None:
    """4 GiB of cache costs what is written, and less again after release."""
    before = _rss()
    cache = KvCache(_layers(), slots=32, max_length=32768)
    reserved = sum(t.array.nbytes for t in cache.tensors)
    assert reserved == 4 * 2**30
    assert _rss() - before < 20 * 2**20
    for tensor in cache.tensors:
        tensor.array[3, :, :8192] = 1.0
    cache.wrote(3, 8192)
    written = 8192 * cache.bytes_per_token
    grown = _rss() - before
    assert written * 0.9 < grown < written * 1.3
    cache.release(3, keep=1024)
    assert _rss() - before < written * 0.3
    for tensor in cache.tensors:
        assert (tensor.array[3, :, :1024] == 1.0).all()
        assert (tensor.array[3, :, 2048:8192] == 0.0).all()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_release_touches_no_neighbour(dtype: Dtype) -> None:
    """Slots that share a page keep what they hold."""
    cache = KvCache(_layers(1, heads=3, dim=8, dtype=dtype), slots=3, max_length=50)
    assert mmap.PAGESIZE > 50 * 8 * 4
    rng = np.random.default_rng(0)
    for tensor in cache.tensors:
        tensor.array[:] = rng.integers(-100, 100, tensor.array.shape)
    for slot in range(3):
        cache.wrote(slot, 50)
    kept = [tensor.array.copy() for tensor in cache.tensors]
    cache.release(1)
    for tensor, before in zip(cache.tensors, kept, strict=True):
        assert (tensor.array[[0, 2]] == before[[0, 2]]).all()


def test_copy_copies_the_beginning_alone() -> None:
    """The first tokens of all layers and heads, and nothing else."""
    cache = KvCache(_layers(2), slots=2, max_length=16)
    for tensor in cache.tensors:
        tensor.array[0] = 7.0
    cache.copy(0, 1, 5)
    for tensor in cache.tensors:
        assert (tensor.array[1, :, :5] == 7.0).all()
        assert (tensor.array[1, :, 5:] == 0.0).all()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_pages_come_back_for_any_number(dtype: Dtype) -> None:
    """What lies beyond the kept tokens is zero again, whatever a number takes."""
    cache = KvCache(_layers(1, dim=64, dtype=dtype), slots=2, max_length=4096)
    for tensor in cache.tensors:
        tensor.array[:, :, :3000] = 7
    cache.wrote(1, 3000)
    cache.release(1, keep=1000)
    for tensor in cache.tensors:
        page = mmap.PAGESIZE // (64 * tensor.array.itemsize)
        assert (tensor.array[0, :, :3000] == 7).all()
        assert (tensor.array[1, :, :1000] == 7).all()
        assert not tensor.array[1, :, 1000 + page : 3000 - page].any()


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("int8", 1)])
@pytest.mark.parametrize("keep", [0, 3])
def test_bytes_per_token_counts_all_layers(keep: int, dtype: Dtype, size: int) -> None:
    """Layers x heads x (key + value) dimensions x bytes of a number."""
    cache = KvCache(_layers(3, heads=2, dim=8, dtype=dtype), slots=1, max_length=4)
    cache.release(0, keep)
    assert cache.bytes_per_token == 3 * 2 * 16 * size
