"""Wanda and SparseGPT on real modules, by their defining properties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optimizers.errors import StageError
from optimizers.flow import Visited, visit_layers
from optimizers.linear_layers import block_layers, block_weights
from optimizers.spec import parse_chain
from optimizers.stage import Outcome
from optimizers.torch_models import load_module
from tests.optimizers.conftest import apply_stage, windows

METHODS = ["wanda", "sparsegpt"]


def _prune(folder: Path, target: Path, method: str, **fields: Any) -> tuple[Outcome, Any]:
    return apply_stage(folder, target, {"prune": {"method": method, **fields}})


@pytest.fixture(params=["llama", "gpt2"])
def folder(request: Any, tiny_llama_folder: Path, gpt2_folder: Path) -> Path:
    return tiny_llama_folder if request.param == "llama" else gpt2_folder


def test_every_layer_is_visited_with_what_flows_into_it(folder: Path) -> None:
    """Inputs are those of a plain pass, as long as nobody changes a weight."""
    module = load_module(folder)
    seen: dict[str, Visited] = {}
    visit_layers(module, windows(), lambda layer: seen.update({layer.name: layer}))
    assert seen
    assert set(seen) == {name for name, _ in block_layers(module)}
    for name, layer in block_layers(module):
        given: list[torch.Tensor] = []
        handle = layer.register_forward_hook(lambda _, inputs, __, to=given: to.append(inputs[0]))
        with torch.no_grad():
            module(input_ids=torch.from_numpy(np.stack(windows())))
        handle.remove()
        expected = given[0].reshape(-1, given[0].shape[-1])
        torch.testing.assert_close(seen[name].inputs, expected)
        assert seen[name].weight.shape[1] == expected.shape[1]


def test_later_layers_see_what_was_changed(folder: Path) -> None:
    """A layer that is zeroed when it is visited gives nothing to those behind it."""
    module = load_module(folder)
    names = [name for name, _ in block_layers(module)]
    first = next(name for name in names if "down_proj" in name or "mlp.c_proj" in name)
    up = next(name for name in names if "up_proj" in name or "c_fc" in name)
    silent: list[bool] = []

    def visit(layer: Visited) -> None:
        if layer.name == up:
            layer.weight.zero_()
        if layer.name == first:
            silent.append(bool((layer.inputs == layer.inputs[0]).all()))

    visit_layers(module, windows(), visit)
    assert silent == [True]  # zeros, or the activation of a bias alone


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_wanda_zeroes_by_size_times_norm(folder: Path, tmp_path: Path, pattern: str) -> None:
    """Computed again, slowly: each output loses its lowest scores, the others stay as they were."""
    outcome, module = _prune(folder, tmp_path / "out", "wanda", amount=0.5, pattern=pattern)
    original = load_module(folder)
    inputs: dict[str, np.ndarray] = {}
    # The pruned module's own activations are those that each layer was judged on.
    visit_layers(module, windows(), lambda x: inputs.update({x.name: x.inputs.numpy().copy()}))
    before = dict(block_layers(original))
    zeros = 0
    for name, layer in block_layers(module):
        conv = type(layer).__name__ == "Conv1D"
        old, new = (x.weight.detach().numpy() for x in (before[name], layer))
        old, new = (old.T, new.T) if conv else (old, new)
        norms = np.sqrt((inputs[name].astype(np.float64) ** 2).sum(axis=0))
        size = 4 if pattern == "2:4" else old.shape[1]
        for row_old, row_new in zip(old, new, strict=True):
            for start in range(0, len(row_old), size):
                part = slice(start, start + size)
                gone = row_new[part] == 0
                scores = np.abs(row_old[part]) * norms[part]
                assert gone.sum() == size // 2
                assert scores[gone].max() <= scores[~gone].min() * (1 + 1e-4)
                assert (row_new[part][~gone] == row_old[part][~gone]).all()
        zeros += int((new == 0).sum())
    assert outcome.zeros == zeros


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_sparsegpt_keeps_outputs_nearer_than_wanda(
    folder: Path, tmp_path: Path, pattern: str
) -> None:
    """On the text it was calibrated on, logits change less; the share of zeros is the same."""
    ids = torch.from_numpy(np.stack(windows()))
    with torch.no_grad():
        whole = load_module(folder)(input_ids=ids).logits
        errors = {}
        for method in METHODS:
            outcome, module = _prune(folder, tmp_path / method, method, amount=0.5, pattern=pattern)
            errors[method] = float(((module(input_ids=ids).logits - whole) ** 2).mean())
            total = sum(weight.numel() for _, weight in block_weights(module))
            assert outcome.zeros == pytest.approx(total / 2, rel=0.01)
    assert errors["sparsegpt"] < errors["wanda"]


def test_globally_layers_lose_by_what_they_are_missed_by(folder: Path, tmp_path: Path) -> None:
    """Wanda's scores in parts of each layer's root mean square, sorted over all layers at once.

    Each layer then loses the share of its weights that is among the lowest.
    """
    original = load_module(folder)
    scores: dict[str, np.ndarray] = {}

    def visit(layer: Visited) -> None:
        norms = np.linalg.norm(layer.inputs.double().numpy(), axis=0)
        found = np.abs(layer.weight.double().numpy()) * norms
        scores[layer.name] = found / np.sqrt((found**2).mean())

    visit_layers(original, windows(), visit)
    together = np.sort(np.concatenate([found.ravel() for found in scores.values()]))
    threshold = together[round(0.4 * together.size) - 1]
    outcome, module = _prune(folder, tmp_path / "out", "wanda", amount=0.4, scope="global")
    shares = []
    for name, layer in block_layers(module):
        wanted = (scores[name] <= threshold * (1 + 1e-6)).mean()
        shares.append(float((layer.weight == 0).float().mean()))
        # Within a layer every output loses the same number, so that there is some rounding.
        assert shares[-1] == pytest.approx(wanted, abs=0.5 / scores[name].shape[1] + 1e-3)
    assert max(shares) - min(shares) > 0.02, "all layers lose the same: nothing was compared"
    assert outcome.zeros == pytest.approx(0.4 * together.size, rel=0.02)
    assert "layers lost between" in outcome.notes[0]


def test_globally_sparsegpt_comes_to_the_same_share(folder: Path, tmp_path: Path) -> None:
    """Every layer by its own, together as asked for."""
    outcome, module = _prune(folder, tmp_path / "out", "sparsegpt", amount=0.4, scope="global")
    weights = block_weights(module)
    shares = [float((weight == 0).float().mean()) for _, weight in weights]
    assert max(shares) - min(shares) > 0.02
    total = sum(weight.numel() for _, weight in weights)
    assert outcome.zeros == pytest.approx(0.4 * total, rel=0.02)


def test_a_width_that_four_does_not_divide_is_refused(tmp_path: Path) -> None:
    """The layer is named."""
    from benchmarks import zoo

    folder = tmp_path / "odd"
    zoo.write_tokenizer(folder)
    module = zoo.make_model("llama", intermediate_size=90)
    module.save_pretrained(folder)
    with pytest.raises(StageError, match="down_proj has 90 inputs") as refused:
        _prune(folder, tmp_path / "out", "wanda", pattern="2:4")
    assert refused.value.path == "pattern"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"method": "wanda", "pattern": "2:4", "amount": 0.3}, "amount"),
        ({"method": "sparsegpt", "pattern": "2:4", "amount": 0.3}, "amount"),
        ({"method": "magnitude", "pattern": "2:4", "scope": "global"}, "scope"),
        ({"method": "sparsegpt"}, "amount"),
        ({"method": "wanda", "amount": 0.5, "pattern": "4:8"}, "pattern"),
        ({"method": "wanda", "pattern": "2:4", "scope": "global"}, "scope"),
        ({"method": "wanda", "amount": 0.5, "scope": "row"}, "scope"),
    ],
)
def test_fields_that_do_not_agree_are_refused(fields: dict[str, Any], field: str) -> None:
    """The error names the field; two of four needs no amount."""
    (error,) = parse_chain("chain", [{"prune": fields}]).errors
    assert error.path == f"chain[0].prune.{field}"
    assert error.remedy
    assert not parse_chain("chain", [{"prune": {"method": "wanda", "pattern": "2:4"}}]).errors
