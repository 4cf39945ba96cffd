"""What contenders are given: order, prompts, model."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import load_file
from tokenizers import Tokenizer

from benchmarks.prompts import Prompts
from benchmarks.shapes import SHAPES, make_model
from server.comparison.order import order


def test_every_round_has_everybody_once() -> None:
    """Nobody is left out, and rounds do not all begin alike."""
    rounds = [order(5, number) for number in range(4)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in rounds)
    assert len({each[0] for each in rounds}) > 1


def test_prompts_are_the_same_for_everybody_and_never_repeat() -> None:
    """The same purpose and round give the same prompts; another gives others."""
    prompts = Prompts(49_152)
    first = prompts.draw("one", 0, 8, 32)
    assert first == Prompts(49_152).draw("one", 0, 8, 32)
    drawn = [*first, *prompts.draw("one", 1, 8, 32), *prompts.draw("two", 0, 8, 32)]
    assert len({tuple(prompt) for prompt in drawn}) == 24
    assert all(len(prompt) == 32 and min(prompt) > 0 for prompt in drawn)


def test_model_has_the_shape_that_it_is_called(tmp_path: Path) -> None:
    """Weights, config and tokenizer agree, and a second call writes nothing."""
    shape = SHAPES["tiny"]
    folder = make_model(tmp_path, shape)
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    assert sum(weight.size for weight in weights.values()) == shape.parameters
    assert weights["model.embed_tokens.weight"].shape == (config["vocab_size"], 64)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == shape.vocabulary
    assert tokenizer.decode(tokenizer.encode("so it goes, día").ids) == "so it goes, día"
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_model(tmp_path, shape) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_the_large_shape_is_that_of_a_model_of_135_million() -> None:
    """The figures that are published are about this size."""
    assert SHAPES["smollm2-135m"].parameters == 134_515_008
