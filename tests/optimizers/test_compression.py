"""What a standard compressor makes of weights."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from optimizers import compression
from optimizers.compression import compressed_bytes
from tests.optimizers.conftest import BuiltVariants


def _weights(count: int, zeros: float) -> bytes:
    random = np.random.default_rng(3)
    weights = random.standard_normal(count).astype(np.float32)
    weights[random.random(count) < zeros] = 0.0
    return weights.tobytes()


@pytest.mark.parametrize("size", [0, 5, 1 << 20, (3 << 20) + 17])
def test_a_small_file_is_packed_whole(tmp_path: Path, size: int) -> None:
    """But for what the pieces' ends cost, it is what zlib makes of it."""
    content = _weights(size // 4 + 1, 0.5)[:size]
    path = tmp_path / "weights"
    path.write_bytes(content)
    whole = len(zlib.compress(content, 6)) if content else 0
    assert compressed_bytes(path) == pytest.approx(whole, rel=0.01)


def test_a_large_file_is_told_from_pieces_all_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One half is zeros, the other is not: a look at one end would be wrong by a factor."""
    monkeypatch.setattr(compression, "_PIECES", 8)
    half = _weights(4 << 20, 0.0)
    path = tmp_path / "weights"
    path.write_bytes(bytes(len(half)) + half)
    expected = len(zlib.compress(half, 6))
    assert compressed_bytes(path) == pytest.approx(expected, rel=0.05)


def test_zeros_are_what_is_saved(tmp_path: Path) -> None:
    """The more of them, the less is left."""
    found = []
    for zeros in (0.0, 0.5, 0.9):
        path = tmp_path / f"{zeros}"
        path.write_bytes(_weights(1 << 18, zeros))
        found.append(compressed_bytes(path))
    assert found[0] > 1.5 * found[1] > 4 * found[2]


def test_the_last_step_of_a_pruned_artifact_tells_it(built: BuiltVariants) -> None:
    """Only there: elsewhere a compressor saves nothing worth telling."""
    *before, last = built.manifest("lean").lineage
    assert last.zeros
    assert last.compressed_bytes
    assert last.compressed_bytes < last.size_bytes
    assert all(record.compressed_bytes is None for record in before)
    assert all(record.compressed_bytes is None for record in built.manifest("int4").lineage)
