"""Which models are named as substitutes for which."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.protocol import FieldError
from optimizers import siblings
from optimizers.siblings import smaller_siblings, suggesting
from tests.optimizers.conftest import Child


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt2", ("distilbert/distilgpt2",)),
        ("openai-community/gpt2-medium", ("openai-community/gpt2", "distilbert/distilgpt2")),
        (
            "HuggingFaceTB/SmolLM2-1.7B",
            ("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-135M"),
        ),
        ("SmolLM2-360M-Instruct", ("HuggingFaceTB/SmolLM2-135M-Instruct",)),  # a folder
        ("qwen/qwen3-1.7b", ("Qwen/Qwen3-0.6B",)),  # the hub does not mind either
        ("HuggingFaceTB/SmolLM2-135M", ()),  # the smallest has none
        ("demo", ()),
        ("somebody/gpt2", ()),
    ],
)
def test_smaller_ones_of_the_family_are_named(model: str, expected: tuple[str, ...]) -> None:
    """The largest first, and nothing for a model that is in no family."""
    assert smaller_siblings(model) == expected


def test_no_model_is_in_two_families() -> None:
    """Or the answer would depend on the order of the table."""
    names = [name.lower() for family in siblings._FAMILIES for name in family]
    assert len(set(names)) == len(names)
    folders = [name.partition("/")[2] for name in names]
    assert len(set(folders)) == len(folders)


def test_only_errors_about_a_substitute_name_them() -> None:
    """Others keep their remedy."""
    path = "variants.v.chain[0].distill"
    substitute = FieldError(path=f"{path}.substitute", message="No.", remedy="R.")
    other = FieldError(path=f"{path}.revision", message="No.", remedy="R.")
    told, kept = suggesting([substitute, other], "gpt2")
    assert told.remedy == "R. With the tokenizer of gpt2: distilbert/distilgpt2."
    assert kept == other
    assert suggesting([substitute], "demo") == [substitute]


@pytest.mark.parametrize("substitute", ["", None, "./nothing-here"])
def test_a_plan_names_them_where_the_substitute_is_wrong(
    child: Child, gpt2_folder: Path, tmp_path: Path, substitute: str | None
) -> None:
    """Empty, missing, or no folder; the model is known by its folder's name."""
    copy = tmp_path / "gpt2-large"
    copy.mkdir()
    for path in gpt2_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    plan = child.plan(str(copy), {"v": [{"distill": {"substitute": substitute}}]})
    (error,) = plan.errors
    assert error.path == "variants.v.chain[0].distill.substitute"
    assert "distilbert/distilgpt2" in error.remedy
