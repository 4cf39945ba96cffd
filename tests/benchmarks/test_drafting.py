"""How the bench of draft variants judges, and what it has built."""

from __future__ import annotations

import pytest

from benchmarks.drafting import PAIRS, SIBLING, Measured, Pair, judged, parted, table
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
def test_target_and_draft_are_chains(pair: Pair) -> None:
    """The draft is the target's sibling: made smaller, trained, and quantized alike."""
    for chain in (pair.target, pair.draft):
        assert not parse_variant("v", chain).errors
    assert pair.draft == [*SIBLING, *pair.target]
    depth, recover = SIBLING[0]["restructure"], SIBLING[-1]["distill"]
    assert depth["drop"] > 30 - 6  # more than what does nothing
    assert recover["method"] == "recover"


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
