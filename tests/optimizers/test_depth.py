"""Leaving out layers: which go, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import zoo
from optimizers.blocks import block_influences, decoder_blocks, drop_blocks
from optimizers.errors import StageError
from optimizers.layer_trials import Trials
from optimizers.spec import parse_chain
from optimizers.stage import Outcome
from optimizers.torch_models import load_module
from tests.optimizers.conftest import apply_stage, windows

LAYERS = 5
MODELS = ["llama", "gpt2", "qwen3", "gemma3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random models of five layers."""
    made = {}
    for name in MODELS:
        changes: dict[str, Any] = {"num_hidden_layers": LAYERS}
        if zoo.make_config(name).to_dict().get("layer_types"):
            kinds = ["sliding_attention", "full_attention"]
            full = zoo.make_config(name).layer_types == ["full_attention"] * 2
            changes["layer_types"] = [kinds[full or i % 2] for i in range(LAYERS)]
        path = tmp_path_factory.mktemp("models") / name
        made[name] = zoo.write_model(path, name, **changes)
    return made


def _apply(folder: Path, target: Path, **fields: Any) -> tuple[Outcome, Any]:
    return apply_stage(folder, target, {"restructure": {"method": "depth", **fields}})


def _logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = module(input_ids=torch.from_numpy(np.stack(windows()))).logits
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_the_one_without_these_layers(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Saved and loaded again it predicts as the whole one does whose layers are passed over."""
    outcome, module = _apply(folders[name], tmp_path / "out", drop=[1, 3])
    whole = load_module(folders[name])
    for index in (1, 3):
        decoder_blocks(whole)[index].register_forward_hook(
            lambda _, given, output: (
                (given[0], *output[1:]) if isinstance(output, tuple) else given[0]
            )
        )
    torch.testing.assert_close(_logits(module), _logits(whole), atol=1e-5, rtol=1e-4)
    assert module.config.num_hidden_layers == LAYERS - 2
    assert outcome.parameters == module.num_parameters()
    assert "1, 3 of 5" in outcome.notes[0]


def test_another_choice_gives_another_model(folders: dict[str, Path], tmp_path: Path) -> None:
    """The comparison above can fail."""
    _, one = _apply(folders["llama"], tmp_path / "one", drop=[1, 3])
    _, two = _apply(folders["llama"], tmp_path / "two", drop=[1, 2])
    assert (_logits(one) - _logits(two)).abs().max() > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_influence_is_one_minus_the_mean_cosine(name: str, folders: dict[str, Path]) -> None:
    """Computed again from the hidden states that transformers gives."""
    module = load_module(folders[name])
    with torch.no_grad():
        states = module(
            input_ids=torch.from_numpy(np.stack(windows())), output_hidden_states=True
        ).hidden_states
    found = block_influences(module, windows())
    assert len(found) == LAYERS
    # The last of the states is behind the final norm, so the last layer is left out here.
    for index in range(LAYERS - 1):
        x, y = (states[index + k].double().numpy() for k in (0, 1))
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        assert found[index] == pytest.approx(1 - cosine.mean(), abs=1e-6)


def test_the_least_influential_layers_go(folders: dict[str, Path], tmp_path: Path) -> None:
    """As many as asked for."""
    influences = block_influences(load_module(folders["llama"]), windows())
    wanted = sorted(np.argsort(influences)[:2].tolist())
    outcome, _ = _apply(folders["llama"], tmp_path / "out", drop=2)
    assert f"layers {wanted[0]}, {wanted[1]} of" in outcome.notes[0]


def test_kl_removes_the_least_missed_and_looks_again(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Against trying every model that is one layer shorter, one removal after another."""
    whole = _logits(load_module(folders["llama"])).log_softmax(-1)
    dropped: list[int] = []
    for _ in range(2):
        costs = {}
        for index in set(range(LAYERS)) - set(dropped):
            module = load_module(folders["llama"])
            drop_blocks(module, {*dropped, index})
            without = _logits(module).log_softmax(-1)
            costs[index] = float((whole.exp() * (whole - without)).sum(-1).mean())
        dropped.append(min(costs, key=costs.__getitem__))
    outcome, _ = _apply(folders["llama"], tmp_path / "out", drop=2, score="kl")
    one, two = sorted(dropped)
    assert f"layers {one}, {two} of" in outcome.notes[0]


def test_trials_leave_the_module_as_it_was(folders: dict[str, Path]) -> None:
    """Nothing skipped diverges by nothing, before and after."""
    trials = Trials(load_module(folders["llama"]), windows())
    assert trials.divergence(()) == 0.0
    assert trials.divergence({2}) > 0.0
    assert trials.divergence(()) == 0.0


def test_the_last_before_the_final_layer_go(folders: dict[str, Path], tmp_path: Path) -> None:
    """The final layer stays; no text is read."""
    outcome, _ = _apply(folders["llama"], tmp_path / "out", drop=2, score="last")
    assert "layers 2, 3 of 5" in outcome.notes[0]
    (stage,) = parse_chain(
        "chain", [{"restructure": {"method": "depth", "drop": 2, "score": "last"}}]
    ).stages
    assert not stage.calibrates


@pytest.mark.parametrize("drop", [LAYERS, [LAYERS], list(range(LAYERS))])
def test_impossible_amounts_are_refused(
    drop: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    """With how many layers there are."""
    with pytest.raises(StageError, match="5 layers") as refused:
        _apply(folders["llama"], tmp_path / "out", drop=drop)
    assert refused.value.path == "drop"


@pytest.mark.parametrize("drop", [0, -1, [], [1, 1], [-1]])
def test_nonsense_is_refused_before_anything_is_built(drop: Any) -> None:
    """The plan names the field."""
    (error,) = parse_chain("chain", [{"restructure": {"method": "depth", "drop": drop}}]).errors[:1]
    assert error.path.startswith("chain[0].restructure.drop")


def test_layers_go_before_weights_do() -> None:
    """A mask would be undone."""
    chain = [{"prune": {"amount": 0.5}}, {"restructure": {"method": "depth", "drop": 1}}]
    (error,) = parse_chain("chain", chain).errors
    assert error.path == "chain[1].restructure"
