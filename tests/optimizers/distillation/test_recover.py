"""Recovering what pruning and restructuring took: what changes, what must not, and what is kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open

from optimizers.distillation import trainer
from optimizers.distillation.masks import zero_masks
from optimizers.linear_layers import block_weights
from optimizers.spec import parse_chain
from optimizers.torch_models import go_on, load_module
from tests.optimizers.distillation.conftest import LENGTH, make_bench

if TYPE_CHECKING:
    from tests.optimizers.distillation.conftest import Bench

PRUNE = {"prune": {"amount": 0.5}}
QUICK = {
    "method": "recover",
    "tokens": 3_000,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "lora_rank": 4,
}


def _recover(**fields: Any) -> dict[str, Any]:
    return {"distill": {**QUICK, **fields}}


def _figures(note: str) -> tuple[float, float]:
    found = re.search(r"held-out text (\S+) -> ([^\s,]+)", note)
    assert found is not None
    return float(found[1]), float(found[2])


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("weights", ["full", "lora"])
def test_zeros_stay_zero_and_the_rest_recovers(name: str, weights: str, tmp_path: Path) -> None:
    """For every layout of weights and both ways of training, and nothing of peft is left."""
    bench = make_bench(tmp_path, name)
    pattern = {"prune": {"pattern": "2:4"}} if name == "llama" else PRUNE
    pruned, recovered = tmp_path / "pruned", tmp_path / "recovered"
    zeros = bench.apply([pattern], bench.original.folder, pruned).zeros
    outcome = bench.apply([pattern, _recover(weights=weights)], pruned, recovered)

    before, after = _figures(outcome.notes[0])
    assert after < 0.8 * before
    assert outcome.zeros == zeros
    was = dict(block_weights(load_module(pruned)))
    for key, weight in block_weights(load_module(recovered)):
        assert torch.equal(weight == 0, was[key] == 0)
        assert not torch.equal(weight, was[key])
    assert _weights(recovered).keys() == _weights(pruned).keys()
    assert {path.name for path in recovered.iterdir()} == {path.name for path in pruned.iterdir()}
    assert (recovered / "config.json").read_text() == (pruned / "config.json").read_text()


def test_masks_are_what_keeps_zeros(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: without them, training fills zeros in."""
    monkeypatch.setattr(trainer, "apply_masks", lambda *_: None)
    folder = bench.layout.root
    bench.apply([PRUNE], bench.original.folder, folder / "pruned")
    outcome = bench.apply([PRUNE, _recover(learning_rate=1e-3)], folder / "pruned", folder / "out")
    assert outcome.zeros is not None
    assert outcome.zeros < 100


def test_a_stray_zero_is_no_pruning(bench: Bench) -> None:
    """Weights of 16 bits have a few by rounding; they may change, and nobody counts them later."""
    module = load_module(bench.original.folder)
    name, weight = block_weights(module)[0]
    weight.data[0, 0] = 0
    assert zero_masks(module) == {}
    weight.data[:, 0] = 0
    assert set(zero_masks(module)) == {name}


def test_adapters_change_nothing_but_linear_layers(bench: Bench, tmp_path: Path) -> None:
    """Embeddings, norms and head are those from before, and so is all that is written about it."""
    chain: list[dict[str, Any]] = [{"restructure": {"method": "depth", "drop": [2]}}]
    bench.apply(chain, bench.original.folder, tmp_path / "short")
    outcome = bench.apply([*chain, _recover(weights="lora")], tmp_path / "short", tmp_path / "out")
    assert outcome.zeros is None
    was, now = _weights(tmp_path / "short"), _weights(tmp_path / "out")
    assert was.keys() == now.keys()
    changed = {name for name in was if not torch.equal(was[name], now[name])}
    assert changed == {name for name in was if name.endswith("_proj.weight")}


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_a_result_that_is_no_better_is_not_kept(weights: str, bench: Bench, tmp_path: Path) -> None:
    """Steps that are too long make it worse: then the model is the pruned one, and it says so."""
    bench.apply([PRUNE], bench.original.folder, tmp_path / "pruned")
    absurd = _recover(weights=weights, learning_rate=1.0)
    outcome = bench.apply([PRUNE, absurd], tmp_path / "pruned", tmp_path / "out")
    assert "left as it was" in outcome.notes[0]
    before, after = _figures(outcome.notes[0])
    assert not after < before
    was, now = _weights(tmp_path / "pruned"), _weights(tmp_path / "out")
    assert all(torch.equal(was[name], now[name]) for name in was)


def test_the_seed_decides_the_result(bench: Bench, tmp_path: Path) -> None:
    """The same twice gives the same weights, bit for bit; another seed gives others."""
    bench.apply([PRUNE], bench.original.folder, tmp_path / "pruned")
    found = []
    for number, seed in enumerate([1, 1, 2]):
        target = tmp_path / f"out{number}"
        chain = [PRUNE, _recover(seed=seed, weights="lora", tokens=1_000)]
        bench.apply(chain, tmp_path / "pruned", target)
        found.append((target / "model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_the_student_may_write_its_own_text(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every step if so wanted, going on with a part of the text, and it recovers on that too."""
    written: list[tuple[int, ...]] = []

    def noting(module: Any, start: Any, *, length: int) -> Any:
        text = go_on(module, start, length=length)
        assert torch.equal(text[:, : start.shape[1]], start)
        written.append((start.shape[1], *text.shape))
        return text

    monkeypatch.setattr(trainer, "go_on", noting)
    bench.apply([PRUNE], bench.original.folder, tmp_path / "pruned")
    chain = [PRUNE, _recover(on_policy=1.0, tokens=1_000)]
    outcome = bench.apply(chain, tmp_path / "pruned", tmp_path / "out")
    before, after = _figures(outcome.notes[0])
    assert after < before
    assert written == [(LENGTH // 4, 4, LENGTH)] * (1_000 // (4 * LENGTH))


def test_the_teacher_is_the_original_whatever_came_between(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds of pruning and recovering are both judged by the unpruned model."""
    seen: list[Path] = []
    load = load_module

    def noting(folder: Path, **more: Any) -> Any:
        seen.append(folder)
        return load(folder, **more)

    monkeypatch.setattr("optimizers.torch_models.load_module", noting)
    chain: list[dict[str, Any]] = [PRUNE, _recover(tokens=1_000), {"prune": {"amount": 0.6}}]
    chain.append(_recover(tokens=1_000))
    work = bench.original.folder
    for end in range(1, 5):
        bench.apply(chain[:end], work, tmp_path / str(end))
        work = tmp_path / str(end)
    assert seen.count(bench.original.folder) == 3  # to be pruned, and to teach twice
    assert seen.count(tmp_path / "1") == seen.count(tmp_path / "3") == 1


@pytest.mark.parametrize(
    ("chain", "message", "remedy"),
    [
        (["recover"], "needs a restructure or prune before it", "or leave it out"),
        (["substitute", "recover"], "needs a restructure or prune before it", "leave it out"),
        (["recover", "prune"], "needs a restructure or prune before it", "leave it out"),
        (["prune", "recover", "restructure"], "restructure (depth) comes after", "before prune"),
        (["prune", "recover", "student"], "distill (student) comes after", "Move"),
        (["restructure", "recover", "substitute"], "distill (substitute) comes after", "Move"),
        (["prune", "quantize", "recover"], "distill (recover) comes after quantize", "Move"),
        (["student", "student"], "cannot be in a chain that has distill (student)", "Keep one"),
        (["substitute", "student", "restructure", "recover", "prune", "recover"], None, None),
        (["restructure", "recover", "restructure", "recover"], None, None),
        (["prune", "recover", "prune", "recover", "quantize"], None, None),
    ],
)
def test_its_place_in_a_chain(chain: list[str], message: str | None, remedy: str | None) -> None:
    """Behind what it recovers from, in as many rounds as wanted; restructuring is never undone."""
    items: dict[str, dict[str, Any]] = {
        "substitute": {"distill": {"substitute": "demo"}},
        "student": {"distill": {"method": "student", "layers": 2}},
        "restructure": {"restructure": {"method": "depth", "drop": 1}},
        "prune": PRUNE,
        "recover": {"distill": {"method": "recover"}},
        "quantize": {"quantize": {"method": "dynamic"}},
    }
    errors = parse_chain("chain", [items[word] for word in chain]).errors
    if message is None or remedy is None:
        assert not errors
        return
    assert message in errors[0].message
    assert remedy in errors[0].remedy


def test_adapters_refuse_what_they_would_leave_out(tmp_path: Path) -> None:
    """Experts that lie outside linear layers would not be trained."""
    from optimizers.errors import StageError

    bench = make_bench(tmp_path, "mixtral")
    chain: list[dict[str, Any]] = [{"restructure": {"method": "depth", "drop": [1]}}]
    bench.apply(chain, bench.original.folder, tmp_path / "short")
    with pytest.raises(StageError, match="outside linear layers") as refused:
        bench.apply([*chain, _recover(weights="lora")], tmp_path / "short", tmp_path / "out")
    assert refused.value.path == "weights"
    outcome = bench.apply([*chain, _recover(tokens=1_000)], tmp_path / "short", tmp_path / "full")
    before, after = _figures(outcome.notes[0])
    assert after < before
