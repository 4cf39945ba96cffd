"""Chains as users write them: errors with paths, defaults, order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from artifacts.protocol import Built
from artifacts.store import Store
from optimizers.recipe import export_key, recipe_digest, source_key, stage_key
from optimizers.spec import chain_warnings, parse_variant
from optimizers.stages import TABLE
from tests.optimizers.conftest import ENVIRONMENT, Child


def _errors(value: Any) -> list[tuple[str, str | None]]:
    return [(error.path, error.nearest) for error in parse_variant("v", value).errors]


def test_all_mistakes_are_told_at_once_with_path_and_nearest_name() -> None:
    """A user fixes a config in one go."""
    found = _errors(
        [
            {"prun": {"amount": 0.5}},
            {"prune": {"amount": 1.5, "scop": "global"}},
            {"quantize": {"method": "weight_onyl"}},
            {"quantize": {"method": "weight_only", "bits": 5, "algorithm": "kquant"}},
            {"distill": {}},
            {"prune": {"amount": 0.1}, "quantize": {}},
        ]
    )
    assert found == [
        ("variants.v.chain[0].prun", "prune"),
        ("variants.v.chain[1].prune.amount", None),
        ("variants.v.chain[1].prune.scop", "scope"),
        ("variants.v.chain[2].quantize.method", "weight_only"),
        ("variants.v.chain[3].quantize.bits", None),
        ("variants.v.chain[3].quantize.algorithm", "k_quant"),
        ("variants.v.chain[4].distill.method", None),
        ("variants.v.chain[5]", None),
    ]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("int8", "variants.v"),
        ({"chain": []}, "variants.v"),
        ([["quantize"]], "variants.v.chain[0]"),
        ([{"quantize": [8]}], "variants.v.chain[0].quantize"),
        ([{"quantize": {}}], "variants.v.chain[0].quantize.method"),
    ],
)
def test_a_malformed_variant_is_told_where(value: Any, path: str) -> None:
    """Whatever stands in a config's place for a chain gets an error with its path."""
    assert _errors(value)[0][0] == path


def test_a_variant_without_a_list_is_the_original() -> None:
    """A key with nothing after it is YAML's null."""
    assert parse_variant("v", None).stages == ()


def test_written_out_defaults_do_not_change_the_recipe() -> None:
    """A recipe is about what is done, not about how it was written down."""
    short = parse_variant("v", [{"prune": {"amount": 0.5}}, {"quantize": {"method": "dynamic"}}])
    long = parse_variant("w", [stage.as_item() for stage in short.stages])
    assert recipe_digest("r", short.stages, "text") == recipe_digest("r", long.stages, "text")
    other = parse_variant("v", [{"prune": {"amount": 0.4}}, {"quantize": {"method": "dynamic"}}])
    assert recipe_digest("r", short.stages, "text") != recipe_digest("r", other.stages, "text")
    assert recipe_digest("s", short.stages, "text") != recipe_digest("r", short.stages, "text")


def test_recipes_hold_no_library_versions_and_keys_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade orphans no artifact, but reuses no intermediate result either."""
    stages = parse_variant("v", [{"prune": {"amount": 0.5}}]).stages

    def names() -> tuple[str, str, str]:
        key = stage_key(source_key("r"), stages[0], "text")
        return recipe_digest("r", stages, "text"), key, export_key(source_key("r"))

    recipe, key, export = names()
    monkeypatch.setattr("optimizers.recipe.version", lambda _: "999.0")
    assert names()[0] == recipe
    assert names()[1] != key
    assert names()[2] != export


@pytest.mark.parametrize(
    ("chain", "at"),
    [
        ([{"quantize": {"method": "dynamic"}}, {"prune": {"amount": 0.5}}], 1),
        ([{"prune": {"amount": 0.5}}, {"distill": {"substitute": "demo"}}], 1),
        ([{"quantize": {"method": "dynamic"}}, {"quantize": {"method": "weight_only"}}], 1),
        ([{"distill": {"substitute": "demo"}}, {"distill": {"substitute": "demo"}}], 1),
    ],
)
def test_a_chain_out_of_order_is_refused_with_the_reason(
    chain: list[dict[str, Any]], at: int
) -> None:
    """What a later stage would undo is refused before anything is built."""
    (error,) = parse_variant("v", chain).errors
    assert error.path.startswith(f"variants.v.chain[{at}].")
    assert error.remedy


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (["prune", "recover", "substitute"], "Move distill (substitute) before prune (magnitude)."),
        (["prune", "quantize", "recover"], "Move distill (recover) before quantize (dynamic)."),
        (["recover", "quantize"], "Put distill (recover) behind one, or leave it out."),
        (["substitute", "substitute"], "Keep one of the two."),
        (["substitute", "prune", "prune", "recover", "recover", "quantize"], None),
        (["substitute", "prune", "recover", "prune", "recover"], None),
    ],
)
def test_the_order_is_the_stages_own_whatever_their_names(
    chain: list[str], message: str | None
) -> None:
    """Methods of one name have ranks, groups and needs of their own; spec knows none of them."""
    items = {
        "substitute": {"distill": {"substitute": "demo"}},
        "recover": {"distill": {"method": "recover"}},
        "prune": {"prune": {"amount": 0.1}},
        "quantize": {"quantize": {"method": "dynamic"}},
    }
    found = parse_variant("v", [items[word] for word in chain]).errors
    if message is None:
        assert found == ()
    else:
        (error,) = found
        assert message in error.remedy


@pytest.mark.parametrize(
    ("chain", "warned"),
    [
        (["depth", "width"], ["restructure (depth)", "restructure (width)"]),
        (["depth", "depth", "quantize"], ["restructure (depth)"]),
        (["width", "recover"], []),
        (["width", "recover", "depth"], ["restructure (depth)"]),
        (["prune", "quantize"], []),
    ],
)
def test_what_nothing_mends_is_warned_of(chain: list[str], warned: list[str]) -> None:
    """Each stage says what should follow it; a warning is no error."""
    items = {
        "depth": {"restructure": {"method": "depth", "drop": 1}},
        "width": {"restructure": {"method": "width", "ffn": 0.5}},
        "recover": {"distill": {"method": "recover"}},
        "prune": {"prune": {"amount": 0.1}},
        "quantize": {"quantize": {"method": "dynamic"}},
    }
    parsed = parse_variant("v", [items[word] for word in chain])
    assert not parsed.errors
    found = chain_warnings(parsed.stages)
    assert [text.partition(" is not")[0] for text in found] == warned
    assert all("distill (recover)" in text for text in found)


SOFTEN = """
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from optimizers.stage import Outcome, Stage
from optimizers.torch_models import load_module, save_module


class Soften(Stage):
    name: ClassVar[str] = "soften"
    version: ClassVar[int] = 1
    form: ClassVar[Literal["torch", "onnx"]] = "torch"
    rank: ClassVar[int] = 20
    reason: ClassVar[str] = "it changes weights of the torch form"

    factor: Annotated[float, Field(gt=0, le=1, description="What logits are multiplied with.")]

    def apply(self, work, target, report):
        module = load_module(work.folder)
        module.get_output_embeddings().weight.data *= self.factor
        save_module(module, work.folder, target)
        return Outcome()
"""
# What a line in the table does, from outside of the tree.
REGISTER = """
import pathlib
import optimizers.stages as stages

stages.__path__.append(str(pathlib.Path(__file__).parent))
stages.TABLE = (*stages.TABLE, stages.Entry("soften", "soften", "soften:Soften"))
"""


def test_a_new_stage_is_one_file_and_one_line(
    tiny_llama_folder: Path, evaluation: Path, tmp_path: Path
) -> None:
    """A stage of a new name is planned, ordered and built by the program as it is."""
    (tmp_path / "soften.py").write_text(SOFTEN, encoding="utf-8")
    (tmp_path / "sitecustomize.py").write_text(REGISTER, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    child = Child(tmp_path / "store", environment={**ENVIRONMENT, "PYTHONPATH": path})
    model = str(tiny_llama_folder)
    prune, soften = {"prune": {"amount": 0.1}}, {"soften": {"factor": 0.5}}

    def chain_of(*items: dict[str, Any]) -> dict[str, Any]:
        return {"v": [*items, {"quantize": {"method": "weight_only"}}]}

    (error,) = child.plan(model, chain_of(soften, prune)).errors
    assert error.path == "variants.v.chain[1].prune"
    assert error.remedy == "Move prune (magnitude) before soften."
    planned = child.plan(model, chain_of(prune, soften)).variants["v"]
    events = child.build(model, planned, evaluation={"text": str(evaluation)})
    assert isinstance(events[-1], Built)
    lineage = Store(child.store).manifest(events[-1].artifact).lineage
    assert [record.stage for record in lineage] == ["prune", "soften", "export", "quantize"]
    assert lineage[1].params == {"factor": 0.5}
    before, after = (lineage[index].quality for index in (0, 1))
    assert before is not None
    assert after is not None
    assert after.kl_mean != before.kl_mean


def test_a_chain_in_order_is_accepted() -> None:
    """Pruning twice is fine; the rest comes once."""
    chain = [
        {"distill": {"substitute": "demo"}},
        {"prune": {"amount": 0.1}},
        {"prune": {"amount": 0.2}},
        {"quantize": {"method": "weight_only"}},
    ]
    assert not parse_variant("v", chain).errors


def test_what_an_algorithm_cannot_do_is_a_field_error() -> None:
    """Fields are checked against each other before anything is built."""
    fields = {"method": "weight_only", "algorithm": "k_quant", "symmetric": True}
    assert _errors([{"quantize": fields}]) == [("variants.v.chain[0].quantize.symmetric", None)]


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: f"{entry.name}-{entry.method}")
def test_every_field_of_every_stage_is_described(entry: Any) -> None:
    """A stage's fields are its documentation."""
    stage = entry.load()
    assert stage.name == entry.name
    assert stage.form in {"torch", "onnx"}
    assert stage.version >= 1
    assert isinstance(stage.rank, int)
    assert stage.reason
    for name, field in stage.model_fields.items():
        assert field.description, f"{entry.target}.{name} has no description"
