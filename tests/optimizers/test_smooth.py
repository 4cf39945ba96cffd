"""SmoothQuant and AWQ as stages, by their formulas and by what they leave as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.manifest import Quality
from artifacts.measure import measure, open_scorer
from artifacts.reference import load_reference, make_reference
from benchmarks import zoo
from optimizers.block_quantization import quantize_blocks
from optimizers.flow import visit_layers
from optimizers.folding_places import find_foldings
from optimizers.foldings import behind_linear, weight_of
from optimizers.linear_layers import block_layers
from optimizers.spec import parse_chain
from optimizers.stage import Work
from optimizers.stages.awq import search
from optimizers.torch_models import load_module

pytestmark = pytest.mark.usefixtures("one_torch_thread")
METHODS: dict[str, dict[str, Any]] = {
    "awq": {"method": "awq"},
    "smoothquant": {"method": "smoothquant", "alpha": 0.7},
}


def _windows(count: int = 16, length: int = 48) -> list[np.ndarray]:
    return list(np.random.default_rng(7).integers(0, 256, (count, length)))


def _apply(name: str, fields: dict[str, Any], folder: Path, target: Path, graph: Any = None) -> Any:
    target.mkdir()
    chain = parse_chain("chain", [{name: fields}])
    assert not chain.errors, chain.errors
    original: Any = None  # neither works on it
    work = Work(folder, graph, original, _nobody, lambda _: _windows(), 1)
    return chain.stages[0].apply(work, target, lambda *_: None)


def _nobody(*_: object) -> Any:
    pytest.fail("smoothing needs no other model")


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name: str = request.param
    return zoo.write_model(tmp_path_factory.mktemp("models") / name, name)


@pytest.mark.parametrize("name", METHODS)
def test_predictions_stay_and_weights_do_not(folder: Path, tmp_path: Path, name: str) -> None:
    """Loaded again, the model computes what it did, by other numbers."""
    outcome = _apply("smooth", METHODS[name], folder, tmp_path / "out")
    assert "norms" in outcome.notes[0]
    one, other = load_module(folder), load_module(tmp_path / "out")
    ids = torch.from_numpy(np.stack(_windows(4)))
    with torch.no_grad():
        torch.testing.assert_close(other(ids).logits, one(ids).logits, rtol=1e-4, atol=1e-4)
    before = dict(block_layers(one))
    changed = [
        name
        for name, layer in block_layers(other)
        if not torch.equal(layer.weight, before[name].weight)
    ]
    assert len(changed) > len(before) / 2


def test_models_of_16_bits_keep_their_predictions_too(tmp_path: Path) -> None:
    """The result is float32: rounding scaled weights to 16 bits would change them."""
    module = zoo.make_model("llama").to(torch.bfloat16)
    module.save_pretrained(tmp_path / "half")
    _apply("smooth", {"method": "smoothquant"}, tmp_path / "half", tmp_path / "out")
    ids = torch.from_numpy(np.stack(_windows(2)))
    with torch.no_grad():
        before, after = (load_module(tmp_path / one)(ids).logits for one in ("half", "out"))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_smoothquant_s_scales_are_those_of_the_formula(folder: Path, tmp_path: Path) -> None:
    """Computed again, channel by channel, from plain activations and weights."""
    _apply("smooth", METHODS["smoothquant"], folder, tmp_path / "out")
    module, smoothed = load_module(folder), load_module(tmp_path / "out")
    after = dict(block_layers(smoothed))
    inputs: dict[str, np.ndarray] = {}
    visit_layers(module, _windows(), lambda x: inputs.update({x.name: x.inputs.numpy().copy()}))
    foldings = find_foldings(module, _windows()[0])
    norms = [folding for folding in foldings if folding.kind == "norm"]
    assert norms
    for folding in norms:
        # What a norm's readers also make for others is divided by the others' scales: values and
        # the linear half of feed-forward networks. The first reader makes neither.
        name, layer = folding.consumers[0]
        old, new = weight_of(layer)[:16].numpy(), weight_of(after[name])[:16].numpy()
        for channel in range(0, folding.channels, 5):
            most = max(float(np.abs(inputs[name][:, channel]).max()), 0.0)
            largest = max(
                float(weight_of(one)[:, channel].abs().max()) for _, one in folding.consumers
            )
            scale = most**0.7 / largest**0.3
            np.testing.assert_allclose(new[:, channel], old[:, channel] * scale, rtol=1e-4)


def test_awq_takes_the_power_that_costs_least() -> None:
    """Every power is tried out on the layer's outputs; 0, which is no scale, is among them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=generator)
    inputs = torch.randn(300, 64, generator=generator)
    inputs[:, ::9] *= 12  # channels that matter more
    layer = torch.nn.Linear(64, 48, bias=False)
    layer.weight.data = weight
    folding = behind_linear("up", ("a", torch.nn.Linear(8, 64)), ("b", layer), 1, 64)
    found = search(folding, inputs, [weight], bits=4, block_size=16)

    def lost(scales: torch.Tensor) -> float:
        rounded = quantize_blocks(
            (weight * scales).numpy(), bits=4, block_size=16, is_symmetric=False, algorithm="rtn"
        ).restore(64)
        off = inputs.double() @ (torch.from_numpy(rounded) / scales - weight).double().T
        return float((off**2).sum())

    sizes = inputs.abs().mean(dim=0)
    tried = [lost(sizes ** (power / 20)) for power in range(21)]
    assert lost(found) == pytest.approx(min(tried), rel=0.02)
    assert min(tried) < 0.8 * tried[0]
    assert int(np.argmin(tried)) not in {0, 20}


def test_a_pruned_model_keeps_its_zeros(folder: Path, tmp_path: Path) -> None:
    """Smoothing comes after pruning and moves no mask."""
    _apply("prune", {"amount": 0.5}, folder, tmp_path / "pruned")
    _apply("smooth", {"method": "awq"}, tmp_path / "pruned", tmp_path / "out")
    before, after = (dict(block_layers(load_module(tmp_path / one))) for one in ("pruned", "out"))
    for name, layer in before.items():
        assert bool((layer.weight == 0).any())
        assert torch.equal(layer.weight == 0, after[name].weight == 0)


def test_smoothing_comes_after_pruning_and_only_once() -> None:
    """The order rules of its rank and its group."""
    chain = parse_chain(
        "chain", [{"smooth": {"method": "smoothquant"}}, {"prune": {"amount": 0.5}}]
    )
    assert "prune" in chain.errors[0].message
    chain = parse_chain("chain", ["smooth", {"smooth": {"method": "smoothquant"}}])
    assert chain.errors


@pytest.fixture(scope="module")
def outlier_losses(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Quality]:
    """Give what int8 costs a model with a few huge activations, as it is and smoothed."""
    from optimizers.export import export

    scratch = tmp_path_factory.mktemp("outliers")
    folder = zoo.write_model(scratch / "model", "llama")
    module = load_module(folder)
    for folding in find_foldings(module, _windows()[0]):
        scales = torch.ones(folding.channels)
        if folding.kind == "norm":
            scales[::13] = 1 / 60  # the function stays: weights shrink as activations grow
        folding.fold(scales)
    module.save_pretrained(folder)
    _apply("smooth", {"method": "smoothquant"}, folder, scratch / "smoothed")
    losses = {}
    for name in ("model", "smoothed"):
        exported = export(scratch / name, scratch / f"{name}-export", progress=lambda *_: None)
        if name == "model":
            scorer = open_scorer(exported.model, exported.graph, threads=1)
            make_reference(scratch, _windows(8, 100), scorer, vocabulary=256)
        for method in ("dynamic", "static"):
            target = scratch / f"{name}-{method}"
            _apply("quantize", {"method": method}, exported.model.parent, target, exported.graph)
            variant = open_scorer(target / "model.onnx", exported.graph, threads=1)
            losses[name, method] = measure(load_reference(scratch), variant, is_user_text=False)
    return losses


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_int8_loses_far_less_of_a_model_with_outliers_when_it_is_smoothed(
    outlier_losses: dict[tuple[str, str], Quality], method: str
) -> None:
    """What smoothing is for: a channel's outliers no longer coarsen all the others."""
    before, after = (outlier_losses[name, method].kl_mean for name in ("model", "smoothed"))
    assert after < 0.2 * before
