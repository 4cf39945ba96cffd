"""A substitute must speak the original's tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from artifacts.protocol import BuildFailed, Built
from optimizers.stages.substitute import tokenizer_difference

if TYPE_CHECKING:
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
