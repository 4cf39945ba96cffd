"""Chains as users write them: errors with paths, defaults, order."""

from __future__ import annotations

from typing import Any

import pytest

from optimizers.recipe import export_key, recipe_digest, source_key, stage_key
from optimizers.spec import parse_variant
from optimizers.stages import TABLE


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
        ("variants.v.chain[4].distill.substitute", None),
        ("variants.v.chain[5]", None),
    ]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("int8", "variants.v"),
        ({"chian": []}, "variants.v.chian"),
        ([["quantize"]], "variants.v.chain[0]"),
        ([{"quantize": [8]}], "variants.v.chain[0].quantize"),
        ([{"quantize": {}}], "variants.v.chain[0].quantize.method"),
    ],
)
def test_a_malformed_variant_is_told_where(value: Any, path: str) -> None:
    """Whatever stands in a config's place for a chain gets an error with its path."""
    assert _errors(value)[0][0] == path


def test_a_variant_may_be_a_list_or_a_mapping() -> None:
    """Both forms of a config mean the same."""
    chain = [{"quantize": {"method": "dynamic"}}]
    assert parse_variant("v", chain) == parse_variant("v", {"chain": chain})
    assert parse_variant("v", None).stages == ()


def test_written_out_defaults_do_not_change_the_recipe() -> None:
    """A recipe is about what is done, not about how it was written down."""
    short = parse_variant("v", [{"prune": {"amount": 0.5}}, {"quantize": {"method": "dynamic"}}])
    long = parse_variant("w", {"chain": [stage.as_item() for stage in short.stages]})
    assert recipe_digest("r", short.stages) == recipe_digest("r", long.stages)
    other = parse_variant("v", [{"prune": {"amount": 0.4}}, {"quantize": {"method": "dynamic"}}])
    assert recipe_digest("r", short.stages) != recipe_digest("r", other.stages)
    assert recipe_digest("s", short.stages) != recipe_digest("r", short.stages)


def test_recipes_hold_no_library_versions_and_keys_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade orphans no artifact, but reuses no intermediate result either."""
    stages = parse_variant("v", [{"prune": {"amount": 0.5}}]).stages

    def names() -> tuple[str, str, str]:
        key = stage_key(source_key("r"), stages[0])
        return recipe_digest("r", stages), key, export_key(source_key("r"))

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
    for name, field in stage.model_fields.items():
        assert field.description, f"{entry.target}.{name} has no description"
