"""Turns: who comes when, what is kept of whom, and what an interruption leaves."""

from __future__ import annotations

import asyncio

import pytest

from server.catalog import VariantState, VariantView
from server.comparison.comparison import baseline_first
from server.comparison.rounds import Taken, take_rounds
from server.comparison.turn import Turn
from server.errors import ServerError
from tests.server.comparison.planted import speed

NAMES = ("baseline", "int8", "int4")
TEXTS = {"baseline": ((1, 2, 3), (4, 5)), "int8": ((1, 2, 3), (4, 6)), "int4": ((9,), (4, 5))}


class Machine:
    """Takes turns without servers, and remembers them."""

    def __init__(self, *, breaks: tuple[str, int] | None = None, stops_at: int = -1) -> None:
        self.turns: list[tuple[str, int]] = []
        self.begun: list[tuple[str, int, int]] = []
        self._breaks = breaks
        self._stops_at = stops_at

    async def take(self, variant: str, round_: int) -> Turn:
        if len(self.turns) == self._stops_at:
            raise asyncio.CancelledError
        self.turns.append((variant, round_))
        if self._breaks == (variant, round_):
            raise ServerError("it crashed")
        return Turn(speed(1.0), TEXTS[variant] if round_ == 0 else None)

    async def run(self, rounds: int) -> Taken:
        return await take_rounds(NAMES, rounds, self.take, lambda *turn: self.begun.append(turn))


async def test_every_variant_comes_once_per_round_in_changing_order() -> None:
    """The baseline is first in the first round alone."""
    machine = Machine()
    taken = await machine.run(3)
    assert taken.complete
    by_round = [[name for name, round_ in machine.turns if round_ == r] for r in range(3)]
    assert by_round[0] == list(NAMES)
    assert all(sorted(names) == sorted(NAMES) for names in by_round)
    assert len({tuple(names) for names in by_round}) == 3
    assert [len(rounds) for rounds in taken.speeds.values()] == [3, 3, 3]
    assert [turn[1:] for turn in machine.begun] == [(number, 9) for number in range(9)]


async def test_texts_are_compared_with_the_baselines() -> None:
    """Once, in the first round."""
    taken = await Machine().run(2)
    assert taken.divergence["int8"].first == (None, 1)
    assert taken.divergence["int4"].first == (0, None)
    assert "baseline" not in taken.divergence


async def test_a_variant_that_breaks_keeps_its_rounds_and_gets_no_more() -> None:
    """The others go on."""
    machine = Machine(breaks=("int8", 1))
    taken = await machine.run(4)
    assert taken.complete
    assert taken.failures == {"int8": "it crashed"}
    assert [len(rounds) for rounds in taken.speeds.values()] == [4, 1, 4]


async def test_without_the_baselines_text_no_text_diverges() -> None:
    """Speeds are there all the same."""
    taken = await Machine(breaks=("baseline", 0)).run(2)
    assert taken.divergence == {}
    assert [len(rounds) for rounds in taken.speeds.values()] == [0, 2, 2]


async def test_an_interruption_keeps_what_is_done() -> None:
    """Four turns of nine."""
    taken = await Machine(stops_at=4).run(3)
    assert not taken.complete
    assert sum(len(rounds) for rounds in taken.speeds.values()) == 4


@pytest.mark.parametrize(
    ("chains", "names"),
    [
        ({"int8": ({"quantize": {}},), "plain": (), "other": ()}, ["plain", "int8", "other"]),
        ({"int8": ({"quantize": {}},), "int4": ({"quantize": {}},)}, ["int8", "int4"]),
    ],
)
def test_the_baseline_is_the_unchanged_model_or_else_the_first(
    chains: dict[str, tuple[dict[str, object], ...]], names: list[str]
) -> None:
    """All others keep their order."""
    views = [VariantView(name, VariantState.READY, chain=chain) for name, chain in chains.items()]
    assert [view.name for view in baseline_first(views)] == names
