"""What the demo model's card says: small, honest about its held-out text, and able to write Python.

The whole held-out figures take minutes (``python -m demo.evaluate``); here one excerpt is enough to
see that weights, tokenizer and config still belong together.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import demo
from demo.corpus import CALIBRATION_EXCERPTS, HELD_OUT_EXCERPTS, Document

FOLDER = demo.path()
EXCERPT = 5  # about as hard as the average of all
CONTEXT = 1024
SLACK = 1.15  # one excerpt is not the average


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """So small a model gains little from threads that wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _rows(name: str) -> list[dict[str, str]]:
    lines = (FOLDER.parent / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _is_held_out(source: str) -> bool:
    """The rule in the card's words, computed without the code that made the files."""
    number = int(hashlib.sha256(source.encode()).hexdigest()[:16], 16)
    return number % 1000 < 30


def test_the_weights_are_small_enough_to_ship() -> None:
    """A clone of the repository brings the model along."""
    files = list(FOLDER.glob("*.safetensors"))
    assert [file.name for file in files] == ["model.safetensors"]
    assert files[0].stat().st_size <= 12_000_000


@pytest.mark.parametrize(
    ("name", "count", "held_out"),
    [
        ("heldout.jsonl", HELD_OUT_EXCERPTS, True),
        ("calibration.jsonl", CALIBRATION_EXCERPTS, False),
    ],
)
def test_excerpts_lie_on_their_side_of_the_split(name: str, count: int, *, held_out: bool) -> None:
    """Quality is measured on files that training never saw, calibration uses those it did."""
    rows = _rows(name)
    assert len(rows) == len({row["source"] for row in rows}) == count
    for row in rows:
        assert _is_held_out(row["source"]) is held_out
        assert Document(row["source"], row["text"]).held_out is held_out


def test_it_goes_on_with_a_function_as_python_does() -> None:
    """Greedily, ``def fibonacci(n):`` gets a body that parses and returns."""
    body = _body(_continue("def fibonacci(n):", 64))
    (function,) = ast.parse(f"def fibonacci(n):\n{body}").body
    assert isinstance(function, ast.FunctionDef)
    assert any(isinstance(node, ast.Return) for node in ast.walk(function))
    assert len(function.body) >= 2


def _continue(prompt: str, tokens: int) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    given = tokenizer(prompt, return_tensors="pt")
    text = model.generate(**given, max_new_tokens=tokens, do_sample=False)
    written: str = tokenizer.decode(text[0, given.input_ids.shape[1] :], skip_special_tokens=True)
    return written


def _body(text: str) -> str:
    """The complete lines that are indented at least as far as the first one."""
    lines = text.lstrip("\n").split("\n")[:-1]
    indent = re.match(" *", lines[0])
    assert indent is not None
    assert indent[0]
    body = []
    for line in lines:
        if line and not line.startswith(indent[0]):
            break
        body.append(line)
    return "\n".join(body)


def _card_perplexity() -> float:
    """Read the excerpts' perplexity from the model card."""
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    row = re.search(r"^\| excerpts, 48 files \|.*?\|.*?\| ([\d.]+) \|", card, re.MULTILINE)
    assert row is not None
    return float(row[1])


def _perplexity(folder: Path) -> float:
    from demo.evaluate import measure

    text = _rows("heldout.jsonl")[EXCERPT]["text"]
    return float(measure(folder, [text], CONTEXT)["perplexity"])


def test_held_out_perplexity_is_that_of_the_card() -> None:
    """Up to how much one excerpt may differ from all of them."""
    assert _perplexity(FOLDER) < SLACK * _card_perplexity()


def test_one_shuffled_layer_would_be_noticed(tmp_path: Path) -> None:
    """The bound is no formality: the same numbers in another order exceed it."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "shuffled"
    shutil.copytree(FOLDER, folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    for name, weight in weights.items():
        if ".layers.3." in name:
            order = torch.randperm(weight.numel(), generator=generator)
            weights[name] = weight.flatten()[order].view(weight.shape).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert _perplexity(folder) > SLACK * _card_perplexity()
