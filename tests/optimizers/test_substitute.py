"""A substitute must speak the original's tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import demo
from artifacts.manifest import ModelSource
from artifacts.protocol import BuildFailed, Built
from optimizers.errors import SourceError
from optimizers.sources import Source
from optimizers.stage import Work
from optimizers.stages.substitute import SAMPLES, Substitute, tokenizer_difference
from optimizers.tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.optimizers.conftest import BuiltVariants


@pytest.fixture
def other(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "sibling"
    shutil.copytree(tiny_llama_folder, copy)
    return copy


def _rename_token(folder: Path) -> None:
    """Swap the ids of two tokens."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    one, two = list(vocabulary)[5:7]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(content))


def test_the_same_tokenizer_agrees(tiny_llama_folder: Path, other: Path) -> None:
    """A copy speaks the same tokens."""
    assert tokenizer_difference(tiny_llama_folder, other) is None


def test_swapped_ids_are_found(tiny_llama_folder: Path, other: Path) -> None:
    """Two tokens with exchanged ids would turn every text into another."""
    _rename_token(other)
    difference = tokenizer_difference(tiny_llama_folder, other)
    assert difference is not None
    assert "vocabularies" in difference


def test_another_way_of_splitting_is_found(tiny_llama_folder: Path, other: Path) -> None:
    """The same vocabulary behind another pre-tokenizer gives other ids."""
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(content))
    difference = tokenizer_difference(tiny_llama_folder, other)
    assert difference is not None
    assert "normalizer" in difference


def _edit(folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def demo_copy(tmp_path: Path) -> Path:
    """Give a folder with the demo's tokenizer, which has merges."""
    shutil.copy(demo.path() / "tokenizer.json", tmp_path)
    return tmp_path


def test_merges_that_no_sample_uses_are_found(demo_copy: Path) -> None:
    """The same vocabulary put together by fewer merges gives other ids for some text."""
    tokenizer = load_tokenizer(demo.path())
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    kept = [pair for pair in merges if _is_used("".join(pair), tokenizer)]
    assert 0 < len(kept) < len(merges) / 2
    _edit(demo_copy, lambda content: content["model"].update(merges=kept))
    other = load_tokenizer(demo_copy)
    assert other.get_vocab() == tokenizer.get_vocab()
    assert all(other.encode(text).ids == tokenizer.encode(text).ids for text in SAMPLES)
    assert "(merges)" in str(tokenizer_difference(demo.path(), demo_copy))


def _is_used(merged: str, tokenizer: Any) -> bool:
    """Whether a merge's result is part of any token of the samples."""
    return any(merged in token for text in SAMPLES for token in tokenizer.encode(text).tokens)


def test_an_older_form_of_the_same_file_agrees(demo_copy: Path) -> None:
    """Merges as strings and options left out mean what the newer form writes out."""

    def write_older(content: dict[str, Any]) -> None:
        model = content["model"]
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
        del model["ignore_merges"], model["byte_fallback"]

    assert tokenizer_difference(demo.path(), _edit(demo_copy, write_older)) is None


@pytest.mark.parametrize("flag", ["special", "lstrip", "normalized", "single_word"])
def test_another_flag_of_an_added_token_is_found(demo_copy: Path, flag: str) -> None:
    """Flags decide where a token is found in a text, and whether it is shown."""

    def flip(content: dict[str, Any]) -> None:
        content["added_tokens"][5][flag] ^= True

    difference = tokenizer_difference(demo.path(), _edit(demo_copy, flip))
    assert "added tokens, for example '<|end|>'" in str(difference)


def test_an_option_of_the_model_is_found(demo_copy: Path) -> None:
    """Whole words of the vocabulary before merges: other ids from the same merges."""
    _edit(demo_copy, lambda content: content["model"].update(ignore_merges=True))
    assert "(ignore_merges)" in str(tokenizer_difference(demo.path(), demo_copy))


@pytest.mark.parametrize(("said", "named"), [("model", "substitute"), ("revision", "revision")])
def test_a_model_that_cannot_be_had_is_an_error_of_this_stages_field(
    said: str, named: str, tmp_path: Path
) -> None:
    """``model`` is the field of another place; here the model is named by ``substitute``."""

    def fetch(*_: object) -> Source:
        raise SourceError("Gone.", path=said, remedy="Look.")

    original = Source(ModelSource(id="a", revision="b", architecture="c", license=None), tmp_path)
    work = Work(
        folder=tmp_path, graph=None, original=original, fetch=fetch, calibration=lambda _: ()
    )
    with pytest.raises(SourceError) as caught:
        Substitute(substitute="other").apply(work, tmp_path, lambda *_: None)
    assert caught.value.path == named
    assert caught.value.remedy == "Look."


def test_a_substitute_becomes_the_artifact(
    built: BuiltVariants, other: Path, evaluation: Path
) -> None:
    """The same content under another name leads to the very artifact of the original."""
    chain = [{"distill": {"substitute": str(other)}}]
    planned = built.child.plan(built.model, {"s": chain}).variants["s"]
    events = built.child.build(built.model, planned, evaluation={"text": str(evaluation)})
    assert events[-1] == Built(artifact=built.manifest("baseline").digest)


def test_a_substitute_with_other_tokens_is_refused_naming_both(
    built: BuiltVariants, other: Path
) -> None:
    """The error names the field, both models and why."""
    _rename_token(other)
    chain = [{"distill": {"substitute": str(other)}}]
    planned = built.child.plan(built.model, {"s": chain}).variants["s"]
    failed = built.child.build(built.model, planned)[-1]
    assert isinstance(failed, BuildFailed)
    assert failed.code == "stage"
    assert failed.path == "variants.tested.chain[0].distill.substitute"
    assert "sibling" in failed.message
    assert "tiny-llama" in failed.message
