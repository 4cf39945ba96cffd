"""Which products keep float32 activations, on a model with activations that int8 cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.manifest import GraphSpec
from artifacts.packed_session import PackedSession
from artifacts.session import Row
from benchmarks import zoo
from optimizers.accuracy_levels import level_error
from optimizers.block_quantization import quantize_blocks
from optimizers.export import export
from tests.optimizers.onnx_stage import random_windows, run_stage

CHANNEL, SIZE = 5, 4000.0
LENGTH = 64


@pytest.fixture(scope="module")
def massive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphSpec]:
    """A Llama whose second layer's MLP is given one huge activation, which its weights ignore.

    In float32 it computes what it did without; a block of int8 has no steps left for the others.
    """
    import torch

    folder = tmp_path_factory.mktemp("massive")
    model = folder / "model"
    zoo.write_tokenizer(model)
    module = zoo.make_model("llama")
    layer = module.model.layers[1]
    with torch.no_grad():
        layer.post_attention_layernorm.weight[CHANNEL] = SIZE
        for product in (layer.mlp.gate_proj, layer.mlp.up_proj):
            product.weight[:, CHANNEL] = 0
    module.save_pretrained(model)
    exported = export(model, folder, progress=lambda *_: None)
    return exported.model, exported.graph


def _best(model: Path, graph: GraphSpec) -> np.ndarray:
    session = PackedSession(model, graph, slots=1, max_length=LENGTH, threads=1)
    return np.concatenate(
        [
            session.step([Row(0, 0, tokens, tokens.size)]).best.copy()
            for tokens in random_windows(graph.vocab_size)
        ]
    )


def test_a_massive_activation_keeps_its_products_exact(
    massive: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """Level 4 changes the likeliest tokens; auto finds the two products at fault and repairs it."""
    original = _best(*massive)
    agreement = {}
    for level in (4, 1, "auto"):
        target = tmp_path / str(level)
        target.mkdir()
        fields = {"method": "weight_only", "block_size": 16, "accuracy_level": level}
        outcome = run_stage(fields, *massive, target)
        agreement[level] = float((_best(target / "model.onnx", massive[1]) == original).mean())
    exact = [one.node for one in outcome.plan if one.accuracy_level == 1]
    assert len(exact) == 2
    assert all("layers.1" in name and ("gate" in name or "up" in name) for name in exact)
    assert "2 of 10 4-bit products keep float32 activations" in outcome.notes[0]
    assert agreement[4] < 0.8 * agreement[1]
    assert agreement["auto"] > 0.95 * agreement[1]


def test_a_usual_model_keeps_the_fast_kernel(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """Nothing is slowed down without need."""
    outcome = run_stage(
        {"method": "weight_only", "accuracy_level": "auto"}, *tiny_llama_export, tmp_path
    )
    assert {one.accuracy_level for one in outcome.plan} == {4}
    assert outcome.notes[0].startswith("0 of ")


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_error_is_that_of_the_definition(*, symmetric: bool) -> None:
    """Rounding each block of a row to 127 steps, computed again in numpy."""
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((64, 48)).astype(np.float32)
    rows = rng.standard_normal((20, 64)).astype(np.float32)
    rows[7, 3] = 300.0
    matrix[3] = 0
    blocks = quantize_blocks(
        np.ascontiguousarray(matrix.T),
        bits=4,
        block_size=32,
        is_symmetric=symmetric,
        algorithm="rtn",
    )
    error = level_error(matrix, blocks, rows)
    weights = blocks.restore(64).T.astype(np.float64)
    by_block = rows.reshape(20, 2, 32).astype(np.float64)
    steps = np.abs(by_block).max(axis=2, keepdims=True) / 127
    coarse = (np.rint(by_block / steps) * steps).reshape(20, 64)
    exact = rows @ weights
    lost = np.linalg.norm((coarse - rows) @ weights, axis=1) / np.linalg.norm(exact, axis=1)
    assert lost.argmax() == 7
    assert error.activations == pytest.approx(lost.max(), rel=0.02)
    wanted = rows @ matrix
    off = np.linalg.norm(exact - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert error.weights == pytest.approx(off.mean(), rel=1e-3)
    assert error.level == 1


def test_rows_that_matter_are_tried_among_many() -> None:
    """One uneven row of ten thousand decides."""
    rng = np.random.default_rng(4)
    matrix = rng.standard_normal((32, 16)).astype(np.float32)
    matrix[9] = 0
    rows = rng.standard_normal((10_000, 32)).astype(np.float32)
    transposed: Any = np.ascontiguousarray(matrix.T)
    blocks = quantize_blocks(transposed, bits=4, block_size=32, is_symmetric=False, algorithm="rtn")
    assert level_error(matrix, blocks, rows).level == 4
    rows[4321, 9] = 1000.0
    assert level_error(matrix, blocks, rows).level == 1
