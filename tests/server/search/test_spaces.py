"""Spaces: how they are written, what is refused, what is drawn, and what is nearest to a chain."""

from __future__ import annotations

import itertools
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.search.spaces import Space, read_spaces, split_open

LEAN: dict[str, Any] = {
    "lean": [
        {
            "choice": [
                {"restructure": {"method": "depth", "drop": {"low": 1, "high": 2}}},
                [
                    {"restructure": {"method": "depth", "drop": {"low": 1, "high": 4}}},
                    {"distill": {"recover": {"learning_rate": {"low": 1, "high": 1}}}},
                ],
                "none",
            ]
        },
        {"quantize": {"method": "weight_only", "bits": {"choice": [4, 8]}}},
    ]
}


def space_of(**variants: Any) -> Space:
    space, errors = read_spaces(variants)
    assert errors == []
    return space


def draw(space: Space, params: dict[str, Any]) -> list[Any]:
    return list(space.draw(optuna.trial.FixedTrial(params)).chain)


def test_a_chain_is_drawn_from_where_it_is_open() -> None:
    """Names are places in the config; what is not open stays as it is."""
    space = space_of(**LEAN)
    assert draw(
        space,
        {
            "lean.chain[0]": "restructure depth+distill",
            "lean.chain[0].choice[1][0].restructure.drop": 3,
            "lean.chain[0].choice[1][1].distill.recover.learning_rate": 1,
            "lean.chain[1].quantize.bits": "8",
        },
    ) == [
        {"restructure": {"method": "depth", "drop": 3}},
        {"distill": {"recover": {"learning_rate": 1}}},
        {"quantize": {"method": "weight_only", "bits": 8}},
    ]
    assert draw(space, {"lean.chain[0]": "none", "lean.chain[1].quantize.bits": "4"}) == [
        {"quantize": {"method": "weight_only", "bits": 4}}
    ]


def test_variants_without_anything_open_are_no_spaces() -> None:
    """They are the hand-written ones."""
    chains = {"a": [], "b": ["quantize"], "c": [{"prune": {"amount": 0.5}}], "d": 3}
    space, errors = read_spaces({**chains, **LEAN})
    assert (list(space.chains), errors) == (["lean"], [])
    assert split_open(chains) == (chains, [])


def test_the_size_is_the_number_of_different_chains() -> None:
    """Counted here by drawing each."""
    space = space_of(**LEAN)
    chains = []
    for first, bits in itertools.product(["restructure depth", "r+d", "none"], ["4", "8"]):
        drops = {"restructure depth": [1, 2], "r+d": [1, 2, 3, 4], "none": [None]}[first]
        for drop in drops:
            place = 0 if first == "restructure depth" else "1][0"
            params = {
                "lean.chain[0]": first.replace("r+d", "restructure depth+distill"),
                f"lean.chain[0].choice[{place}].restructure.drop": drop,
                "lean.chain[0].choice[1][1].distill.recover.learning_rate": 1,
                "lean.chain[1].quantize.bits": bits,
            }
            chains.append(str(draw(space, params)))
    assert len(set(chains)) == len(chains) == space.size() == 14


def test_a_float_without_a_step_makes_a_space_infinite() -> None:
    """And an integer does not."""
    assert space_of(a=[{"prune": {"amount": {"low": 0.1, "high": 0.5}}}]).size() == float("inf")
    stepped = {"low": 0.1, "high": 0.5, "step": 0.1}
    assert space_of(a=[{"prune": {"amount": stepped}}]).size() == 5
    assert space_of(a=[{"r": {"drop": {"low": 1, "high": 7, "step": 3}}}]).size() == 3


def test_every_option_and_bound_is_among_the_examples() -> None:
    """So that a space is judged before hours are spent on it."""
    chains = [str(drawn.chain) for drawn, _ in space_of(**LEAN).examples()]
    for part in ("'bits': 4", "'bits': 8", "'drop': 1", "'drop': 2", "recover"):
        assert any(part in chain for chain in chains)
    assert any("restructure" not in chain for chain in chains)


def test_yaml_s_numbers_without_a_dot_are_numbers() -> None:
    """PyYAML reads 1e-5 as text, and the documentation writes it."""
    fields = {"learning_rate": {"low": "1e-5", "high": "1e-3", "log": True}}
    space = space_of(a=[{"distill": fields}])
    (stage,) = draw(space, {"a.chain[0].distill.learning_rate": 3.14159e-4})
    assert stage == {"distill": {"learning_rate": 0.0003142}}


def test_options_that_python_calls_equal_stay_apart() -> None:
    """1, 1.0 and true are different values of a field."""
    space = space_of(a=[{"s": {"f": {"choice": [1, True, "1", None, [1, 2]]}}}])
    values = [draw(space, {"a.chain[0].s.f": label})[0]["s"]["f"] for label in
              ("1", "true", '"1"', "null", "[1, 2]")]  # fmt: skip
    assert [(type(value), value) for value in values] == [
        (int, 1),
        (bool, True),
        (str, "1"),
        (type(None), None),
        (list, [1, 2]),
    ]


@pytest.mark.parametrize(
    ("fields", "path", "words"),
    [
        ({"low": 2, "high": 1}, ".low", "above high"),
        ({"low": 0, "high": 1.0, "log": True}, ".low", "above 0 where log"),
        ({"low": 0.1}, ".high", "is missing"),
        ({"low": "many", "high": 2}, ".low", "no number"),
        ({"low": float("nan"), "high": 2}, ".low", "no number"),
        ({"low": True, "high": 2}, ".low", "no number"),
        ({"low": 1, "high": 2, "lg": True}, ".lg", "no such key"),
        ({"low": 1, "high": 2, "log": "yes"}, ".log", "true or false"),
        ({"low": 1, "high": 2, "log": True, "step": 1}, ".step", "no step"),
        ({"low": 1, "high": 2, "step": 0}, ".step", "above 0"),
        ({"low": 1, "high": 4, "step": 2}, ".high", "multiple of step"),
        ({"choice": []}, ".choice", "at least one"),
        ({"choice": 4}, ".choice", "at least one"),
        ({"choice": [4], "low": 1}, ".low", "no such key"),
        ({"choice": [4, 4]}, ".choice[1]", "twice"),
        ({"choice": [{"low": 1, "high": 2}]}, ".choice[0]", "space itself"),
        ({"choice": list(range(300))}, ".choice", "more than 256"),
    ],
)
def test_a_space_that_is_written_wrongly_is_told_with_path_and_remedy(
    fields: dict[str, Any], path: str, words: str
) -> None:
    """Before anything is built."""
    _, errors = read_spaces({"a": [{"prune": {"amount": fields}}]})
    assert [error.path for error in errors] == [f"variants.a.chain[0].prune.amount{path}"]
    assert words in errors[0].message
    assert errors[0].remedy


def test_a_choice_of_stages_that_is_written_wrongly_is_told() -> None:
    """The same at a chain's own level, and all at once."""
    _, errors = read_spaces({"a": [{"choice": [], "quantize": {}}], "b": [{"choice": None}]})
    assert [error.path for error in errors] == [
        "variants.a.chain[0].quantize",
        "variants.a.chain[0].choice",
        "variants.b.chain[0].choice",
    ]


def test_a_misspelt_key_is_answered_with_the_right_one() -> None:
    """As everywhere in a config."""
    _, errors = read_spaces({"a": [{"p": {"x": {"low": 1, "high": 2, "setp": 1}}}]})
    assert errors[0].nearest == "step"


def test_a_space_of_endlessly_many_things_is_refused() -> None:
    """Nothing is unbounded."""
    _, errors = read_spaces({"a": [{"s": {f"f{n}": {"choice": [1, 2]} for n in range(201)}}]})
    assert "201 things" in errors[0].message


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (
            [{"quantize": {"method": "weight_only", "bits": 8}}],
            {"lean.chain[0]": "none", "lean.chain[1].quantize.bits": "8"},
        ),
        (
            [
                {"restructure": {"method": "depth", "drop": 9}},
                {"quantize": {"method": "weight_only"}},
            ],
            {
                # 4 would be nearer to 9 than 2, but comes with a stage that is not wanted
                "lean.chain[0]": "restructure depth",
                "lean.chain[1].quantize.bits": "4",
            },
        ),
        (
            [
                {"restructure": {"method": "depth", "drop": 3}},
                {"distill": {"method": "recover"}},
                {"quantize": {"method": "weight_only", "bits": 4}},
            ],
            {
                "lean.chain[0]": "restructure depth+distill",
                "lean.chain[0].choice[1][0].restructure.drop": 3,
                "lean.chain[1].quantize.bits": "4",
            },
        ),
    ],
)
def test_the_nearest_point_has_the_wanted_stages(
    wanted: list[Any], expected: dict[str, Any]
) -> None:
    """Known-good recipes begin a search as far as the space has them."""
    space = space_of(**LEAN)
    (params,) = space.nearest(wanted)
    assert expected.items() <= params.items()
    draw(space, params)


def test_nothing_is_near_to_a_chain_with_none_of_its_stages() -> None:
    """A space of pruning alone learns nothing from a quantization."""
    space = space_of(a=[{"prune": {"amount": {"low": 0.1, "high": 0.2}}}])
    assert space.nearest([{"quantize": {"method": "dynamic"}}]) == []


numbers = st.integers(-50, 50) | st.floats(-50, 50, allow_nan=False)
ranges = st.tuples(numbers, numbers).map(
    lambda pair: {"low": min(pair), "high": max(pair)}  # type: ignore[type-var]
)
scalars = st.sampled_from([None, True, 0, 1, 4, 0.25, "none", "rtn"])
choices = st.lists(scalars, min_size=1, max_size=4, unique_by=repr).map(
    lambda values: {"choice": values}
)
stages = st.dictionaries(
    st.sampled_from("abc"), scalars | ranges | choices | st.lists(scalars | ranges, max_size=2)
).map(lambda fields: {"stage": fields})
chains = st.lists(
    stages
    | st.lists(stages | st.just("none") | st.lists(stages, max_size=2), min_size=1, max_size=3).map(
        lambda options: {"choice": options}
    ),
    max_size=3,
)


@given(chain=chains, seed=st.integers(0, 100))
def test_whatever_is_open_is_settled_by_a_draw_and_found_again(chain: list[Any], seed: int) -> None:
    """A drawn chain has nothing open, draws alike from one seed, and is its own nearest point."""
    space, errors = read_spaces({"v": chain})
    assert errors == []
    if not space.chains:
        return
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = space.draw(study.ask())
    again = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    assert space.draw(again.ask()) == drawn
    assert read_spaces({"v": list(drawn.chain)})[0].chains == {}
    assert len(drawn.chain) <= 6


@given(fields=st.dictionaries(st.sampled_from("abc"), ranges | choices, min_size=1))
def test_a_point_is_nearest_to_itself(fields: dict[str, Any]) -> None:
    """A chain of the space is found in it again, floats as they were rounded."""
    space = space_of(v=[{"stage": fields}])
    for drawn, _ in space.examples():
        (params,) = space.nearest(drawn.chain)
        assert draw(space, params) == list(drawn.chain)
