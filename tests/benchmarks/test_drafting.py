"""How the bench of draft variants judges, and what it has built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import zoo
from benchmarks.contenders import ROOT
from benchmarks.drafting import (
    DRAFT_SHAPE,
    PAIRS,
    SIBLING,
    Measured,
    Pair,
    judged,
    parted,
    table,
    write_config,
)
from benchmarks.sibling import make_sibling
from benchmarks.speculation import Found
from optimizers.spec import parse_variant
from server.comparison.streams import Stream


def stream(tokens: tuple[int, ...], *, drafted: int = 0, accepted: int = 0) -> Stream:
    arrivals = tuple((float(index), 1) for index in range(len(tokens)))
    return Stream(0.0, arrivals, tokens, 0, drafted, accepted)


def measured(*ratios: float, margins: tuple[float, ...] = ()) -> Measured:
    """Rounds on a machine that drifts."""
    rates = [(10.0 * (1 + index), 10.0 * (1 + index) * one) for index, one in enumerate(ratios)]
    return Measured(Found(rates, drafted=100, accepted=70, generated=200), [*margins], [0.25])


@pytest.mark.parametrize("pair", PAIRS.values(), ids=lambda pair: pair.name)
def test_servers_have_the_target_alone_both_or_the_draft_alone(pair: Pair, tmp_path: Path) -> None:
    """All their chains are chains; only one server drafts."""
    found = {}
    for name in ("plain", "drafted", "draft"):
        path = write_config(tmp_path / f"{pair.name}-{name}.yaml", pair, Path("t"), Path("d"))
        found[name] = yaml.safe_load(path.read_text())["variants"]
    assert [[*variants] for variants in found.values()] == [
        ["target"],
        ["target", "draft"],
        ["draft"],
    ]
    assert found["plain"]["target"]["speculation"] is None
    assert found["drafted"]["target"]["speculation"] == {"method": "draft", "variant": "draft"}
    for variants in found.values():
        for name, variant in variants.items():
            chain = variant if name == "draft" else variant["chain"]
            assert not parse_variant(name, chain).errors


def test_the_draft_has_lost_layers_that_do_something() -> None:
    """And was trained; or its guesses would be right for nothing."""
    assert not parse_variant("sibling", SIBLING).errors
    depth, recover = SIBLING[0]["restructure"], SIBLING[1]["distill"]
    assert 6 - depth["drop"] == DRAFT_SHAPE.layers
    assert recover["method"] == "recover"


def test_a_sibling_is_made_once(tmp_path: Path) -> None:
    """Of the torch stages of a chain; what is left is a model, and what was said of it."""
    model = zoo.write_model(tmp_path / "llama", "llama")
    chain = [{"restructure": {"method": "depth", "drop": 1, "score": "last"}}]
    text = ROOT / "demo" / "calibration.jsonl"
    told: list[str] = []
    first = make_sibling(tmp_path / "models", model, chain, text, told.append)
    assert make_sibling(tmp_path / "models", model, chain, text, told.append) == first
    assert told == ["restructure, 1 of 1"]
    folder, notes = first
    assert notes == ("left out layers 0 of 2",)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 1
    assert [one.name for one in (tmp_path / "models").iterdir()] == [folder.name]


@pytest.mark.parametrize(("ratio", "met"), [(1.25, True), (1.15, False)])
def test_the_bar_is_the_median_of_ratios_within_rounds(ratio: float, *, met: bool) -> None:
    """Of one stream, whatever several streams gain."""
    results = {"int4": {1: measured(0.9, ratio, 1.6), 4: measured(2.0)}}
    (line, faster), (_, same) = judged(results)
    assert (faster, same) == (met, True)
    assert f"{ratio:.2f} (0.90 to 1.60)" in line
    assert f"{ratio:.2f} (0.90 to 1.60)" in table(results).markdown()


def test_what_was_not_measured_meets_no_bar() -> None:
    """Neither without one stream nor without a round."""
    for of_pair in ({4: measured(2.0)}, {1: Measured()}):
        (_, faster), _ = judged({"int4": of_pair})
        assert not faster


@pytest.mark.parametrize(("pair", "met"), [("float32", False), ("int4", True)])
def test_answers_may_differ_only_at_ties(pair: str, *, met: bool) -> None:
    """What is a tie depends on what is rounded."""
    results = {pair: {1: measured(1.5), 8: measured(1.5, margins=(1e-5, 0.01))}}
    _, (line, same) = judged(results)
    assert same is met
    assert "2 ties, at most 0.01 nats apart" in line


def test_answers_part_at_the_first_token_that_differs() -> None:
    """Only those that differ are looked at."""
    plain = [stream((1, 2, 3)), stream((1, 2, 3)), stream((4, 5))]
    drafted = [stream((1, 2, 3)), stream((1, 9, 3)), stream((9, 5))]
    found = [*parted([(7,), (8,), (9,)], plain, drafted)]
    assert found == [((8,), (1,)), ((9,), ())]
