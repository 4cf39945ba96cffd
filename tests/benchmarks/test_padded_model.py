"""The padded model computes what the demo model does, at another cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.contenders import ROOT
from benchmarks.padded_model import DEMO, Sizes, make_padded, places, sizes_at, sizes_of
from benchmarks.shapes import SHAPES, Shape

if TYPE_CHECKING:
    from pathlib import Path

# Three query heads per key-value head where the demo model has two, as in SmolLM2-135M.
SHAPE = Shape("small", 5_000, 384, 768, 8, 12, 4, 1_024)
VOCABULARY = 4_096


def load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The demo model, and the padded one."""
    return load(DEMO), load(make_padded(tmp_path_factory.mktemp("padded"), SHAPE))


@pytest.fixture(scope="module")
def prompts() -> Any:
    """(4, 96) the beginnings of held-out texts."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    lines = (ROOT / "demo" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    texts = [json.loads(line)["text"][:2_000] for line in lines]
    return torch.tensor([tokenizer(text)["input_ids"][:96] for text in texts])


def distance(demo: Any, padded: Any, prompts: Any) -> float:
    """How far log-probabilities are apart at most."""
    import torch

    with torch.no_grad():
        ours = torch.log_softmax(padded(prompts).logits.double(), -1)[..., :VOCABULARY]
        theirs = torch.log_softmax(demo(prompts).logits.double(), -1)
    return float((ours - theirs).abs().max())


def test_it_predicts_what_the_demo_model_does(models: tuple[Any, Any], prompts: Any) -> None:
    """Every log-probability, within float32's rounding; what is padding is never likely."""
    import torch

    demo, padded = models
    assert distance(demo, padded, prompts) < 1e-4
    with torch.no_grad():
        logits = padded(prompts).logits
    assert float(logits[..., VOCABULARY:].max()) < float(logits.max(-1).values.min()) - 20


def test_it_writes_what_the_demo_model_does(models: tuple[Any, Any], prompts: Any) -> None:
    """Greedy, token by token with a cache."""
    demo, padded = models
    wanted = {"max_new_tokens": 48, "do_sample": False, "eos_token_id": None}
    assert padded.generate(prompts, **wanted).tolist() == demo.generate(prompts, **wanted).tolist()


def test_only_the_added_layers_do_nothing(models: tuple[Any, Any], prompts: Any) -> None:
    """Without an added layer it is the same function, and without one of the demo's another."""
    demo, padded = models
    own = places(6, SHAPE.layers)
    for place, layer in enumerate(padded.model.layers):
        weights = layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight
        kept = [weight.detach().clone() for weight in weights]
        for weight in weights:
            weight.data.zero_()
        found = distance(demo, padded, prompts)
        for weight, before in zip(weights, kept, strict=True):
            weight.data.copy_(before)
        assert (found > 0.1) is (place in own), place


def test_it_costs_what_the_shape_does(models: tuple[Any, Any]) -> None:
    """As many weights, whatever the size of its heads; and as many as SmolLM2-135M has."""
    assert models[1].num_parameters() == SHAPE.parameters
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    large = sizes_at(SHAPES["smollm2-135m"], sizes_of(config))
    assert large == Sizes(576, 1536, 30, 18, 6, 32, 49_152)


def test_layers_are_spread_from_the_first_to_the_last() -> None:
    """None stands where another does."""
    assert places(6, 30) == (0, 6, 12, 17, 23, 29)
    assert places(6, 6) == (0, 1, 2, 3, 4, 5)


def test_a_shape_that_is_too_small_is_refused(tmp_path: Path) -> None:
    """Nothing of the demo model would be left out silently."""
    with pytest.raises(ValueError, match="hidden"):
        make_padded(tmp_path, Shape("narrow", 5_000, 192, 768, 8, 6, 6, 1_024))
    assert not any(tmp_path.iterdir())
