"""Scales that are folded into real modules of many architectures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import zoo
from optimizers.errors import StageError
from optimizers.folding_places import find_foldings
from optimizers.foldings import Folding, weight_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")
PLACES = {  # of two layers each, three for Gemma
    "llama": {"norm": 4, "value": 2, "up": 2},
    "gpt2": {"norm": 4, "value": 2},  # its feed-forward networks have no gate
    "qwen2": {"norm": 4, "value": 2, "up": 2},
    "qwen3": {"norm": 4, "value": 2, "up": 2},
    "gemma3": {"norm": 6, "value": 3, "up": 3},
    "phi3": {"norm": 4, "value": 2, "up": 2},
    "phi": {"norm": 2, "value": 2},  # one norm feeds attention and feed-forward network
    "olmo2": {"value": 2, "up": 2},  # its norms come behind
    "opt": {"norm": 4, "value": 2},
}


def _document(length: int = 40) -> np.ndarray:
    return np.random.default_rng(7).integers(1, 256, length)


def _logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = module(input_ids=torch.from_numpy(_document())[None]).logits
    return logits


def _fold_at_random(foldings: list[Folding]) -> None:
    generator = torch.Generator().manual_seed(1)
    for folding in foldings:
        folding.fold(torch.exp(torch.randn(folding.channels, generator=generator)))


@pytest.mark.parametrize("name", PLACES)
def test_places_are_found_and_the_module_is_left_as_it_was(name: str) -> None:
    """Every kind that the architecture has, in every layer; the proof leaves no trace."""
    module = zoo.make_model(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    foldings = find_foldings(module, _document())
    assert Counter(folding.kind for folding in foldings) == PLACES[name]
    for key, value in module.state_dict().items():
        assert torch.equal(before[key], value), key


@pytest.mark.parametrize("name", PLACES)
def test_any_scales_leave_predictions_as_they_were(name: str) -> None:
    """Folded in everywhere at once, over two orders of magnitude."""
    module = zoo.make_model(name)
    before = _logits(module)
    _fold_at_random(find_foldings(module, _document()))
    torch.testing.assert_close(_logits(module), before, rtol=1e-4, atol=1e-4)


def test_half_a_folding_would_fail_that() -> None:
    """The twin: with the source of one place left as it was, predictions change."""
    module = zoo.make_model("llama")
    before = _logits(module)
    folding = find_foldings(module, _document())[0]
    for _, layer in folding.consumers:
        weight_of(layer).mul_(torch.linspace(0.5, 2, folding.channels))
    assert (_logits(module) - before).abs().max() > 1e-2


def test_zeros_stay_exactly_where_they_were() -> None:
    """A mask survives."""
    module = zoo.make_model("gpt2")
    weights = [part.weight for part in module.modules() if type(part).__name__ == "Conv1D"]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(weight.abs() > weight.abs().median())
    masks = [weight == 0 for weight in weights]
    _fold_at_random(find_foldings(module, _document()))
    assert all(torch.equal(mask, weight == 0) for mask, weight in zip(masks, weights, strict=True))


def test_heads_that_share_values_share_scales() -> None:
    """Four heads of queries and two of values, 16 wide: inputs 0 to 15 and 16 to 31 are one."""
    (folding,) = [
        one for one in find_foldings(zoo.make_model("llama"), _document()) if one.kind == "value"
    ][:1]
    expected = [16 * (head // 2) + place for head in range(4) for place in range(16)]
    assert folding.source_of.tolist() == expected
    values = torch.arange(64.0)
    slow: list[list[float]] = [[] for _ in range(32)]
    for index, source in enumerate(expected):
        slow[source].append(float(values[index]))
    assert folding.most(values).tolist() == [max(one) for one in slow]
    assert folding.mean(values).tolist() == [sum(one) / len(one) for one in slow]


def test_a_norm_that_the_rest_of_the_model_reads_too_is_refused() -> None:
    """BLOOM may add what its norms give to the result: scales would change that."""
    module = zoo.make_model("bloom", apply_residual_connection_post_layernorm=True)
    with pytest.raises(StageError, match="input_layernorm") as caught:
        find_foldings(module, _document())
    assert "smooth" in caught.value.remedy


def test_weights_outside_linear_layers_are_refused() -> None:
    """Experts in one tensor would read a norm's output unseen."""
    with pytest.raises(StageError, match="outside linear layers"):
        find_foldings(zoo.make_model("mixtral"), _document())
