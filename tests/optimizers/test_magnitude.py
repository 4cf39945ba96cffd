"""Pruning by magnitude, on real modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimizers.linear_layers import block_layers, block_weights, is_transposed
from optimizers.stage import Outcome
from optimizers.torch_models import load_module
from tests.optimizers.conftest import apply_stage


def _prune(folder: Path, target: Path, **fields: Any) -> tuple[Outcome, Any]:
    return apply_stage(folder, target, {"prune": fields})


def test_every_layer_loses_its_share(tiny_llama_folder: Path, tmp_path: Path) -> None:
    """Scope layer: the same share everywhere, the smallest weights, and the others untouched."""
    outcome, module = _prune(tiny_llama_folder, tmp_path / "pruned", amount=0.3)
    original = dict(block_weights(load_module(tiny_llama_folder)))
    zeros = 0
    for name, weight in block_weights(module):
        before = original[name]
        gone = weight == 0
        assert int(gone.sum()) == round(0.3 * weight.numel())
        assert before[gone].abs().max() <= before[~gone].abs().min()
        assert (weight[~gone] == before[~gone]).all()
        zeros += int(gone.sum())
    assert outcome.zeros == zeros


def test_globally_the_smallest_go_wherever_they_are(
    tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """Scope global: one threshold for all layers."""
    _, module = _prune(tiny_llama_folder, tmp_path / "pruned", amount=0.5, scope="global")
    weights = block_weights(module)
    original = dict(block_weights(load_module(tiny_llama_folder)))
    gone = sum(int((weight == 0).sum()) for _, weight in weights)
    total = sum(weight.numel() for _, weight in weights)
    assert gone == round(0.5 * total)
    largest_gone = max(
        float(original[name].detach()[weight == 0].abs().max()) for name, weight in weights
    )
    smallest_left = min(float(weight.detach()[weight != 0].abs().min()) for _, weight in weights)
    assert largest_gone <= smallest_left


@pytest.fixture(scope="module")
def coarse_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a random Llama in bfloat16 whose weights have some ten magnitudes, and no zeros."""
    import torch

    from benchmarks import zoo

    folder = tmp_path_factory.mktemp("models") / "coarse"
    zoo.write_tokenizer(folder)
    module = zoo.make_model("llama")
    with torch.no_grad():
        for weight in module.parameters():
            steps = (weight * 32).round()
            weight.copy_(torch.where(steps == 0, 1, steps) / 32)
    module.bfloat16().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("amount", [0.1, 0.3, 0.77])
def test_the_share_is_exact_however_many_weights_are_equal(
    coarse_folder: Path, tmp_path: Path, scope: str, amount: float
) -> None:
    """Equal magnitudes straddle the threshold; only as many of them go as there is room for."""
    outcome, module = _prune(coarse_folder, tmp_path / "pruned", amount=amount, scope=scope)
    weights = block_weights(module)
    original = dict(block_weights(load_module(coarse_folder)))
    parts = [weights] if scope == "global" else [[pair] for pair in weights]
    for part in parts:
        before = [original[name].detach().abs().flatten() for name, _ in part]
        wanted = round(amount * sum(len(magnitudes) for magnitudes in before))
        marked: list[bool] = []
        for _, weight in part:
            marked += (weight == 0).flatten().tolist()
        # Sorting is stable: of equals, the first ones.
        listed = [magnitude for magnitudes in before for magnitude in magnitudes.tolist()]
        order = sorted(range(len(listed)), key=listed.__getitem__)
        assert {index for index, gone in enumerate(marked) if gone} == set(order[:wanted])
        assert listed[order[wanted]] == listed[order[wanted - 1]], "the threshold is not a tie"
    assert outcome.zeros == sum(int((weight == 0).sum()) for _, weight in weights)


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_embeddings_head_and_norms_are_left_alone(
    tiny_llama_folder: Path, gpt2_folder: Path, tmp_path: Path, model: str
) -> None:
    """Only linear layers of the blocks are pruned, Conv1D among them."""
    folder = tiny_llama_folder if model == "llama" else gpt2_folder
    _, module = _prune(folder, tmp_path / "pruned", amount=0.5)
    original = dict(load_module(folder).named_parameters())
    pruned = {name for name, _ in block_weights(module)}
    assert len(pruned) == (14 if model == "llama" else 8)
    for name, parameter in module.named_parameters():
        if name not in pruned:
            assert (parameter == original[name]).all(), name


def test_a_pruned_folder_has_all_files_of_a_model(tiny_llama_folder: Path, tmp_path: Path) -> None:
    """It can be exported, and its tokenizer came along."""
    _prune(tiny_llama_folder, tmp_path / "pruned", amount=0.5)
    names = {path.name for path in (tmp_path / "pruned").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not any(name.endswith(".bin") for name in names)


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_two_of_every_four_along_the_inputs(
    tiny_llama_folder: Path, gpt2_folder: Path, tmp_path: Path, model: str
) -> None:
    """The two smallest of each four go, also where a layer's weight lies transposed."""
    folder = tiny_llama_folder if model == "llama" else gpt2_folder
    outcome, module = _prune(folder, tmp_path / "pruned", pattern="2:4")
    original = dict(block_layers(load_module(folder)))
    zeros = 0
    for name, layer in block_layers(module):
        before, after = original[name].weight.detach().abs(), layer.weight.detach().abs()
        if is_transposed(layer):
            before, after = before.T, after.T
        before, after = (weight.reshape(-1, 4) for weight in (before, after))
        kept = before.sort(dim=1).values[:, 2:]
        assert (after.sort(dim=1).values[:, :2] == 0).all()
        assert (after.sort(dim=1).values[:, 2:] == kept).all()
        zeros += 2 * len(after)
    assert outcome.zeros == zeros
