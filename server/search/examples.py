"""Points of a space that are drawn without Optuna, so that a space can be judged before a search.

Knows nothing of spaces but that they are drawn from.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from server.search.values import Trial

_CYCLES = 24
_RANDOM = 16


def example_trials() -> Iterator[Trial]:
    """Trials in which every one of up to 24 options and both bounds come up, and some at random."""
    for turn in range(_CYCLES):
        yield _Cycle(turn)
    for turn in range(_RANDOM):
        yield _Chance(random.Random(turn))  # noqa: S311 - no secrets


class _Cycle:
    """Takes of everything the option of its turn, round and round."""

    def __init__(self, turn: int) -> None:
        self._turn = turn

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        del name, step, log
        return (low, high)[self._turn % 2]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float:
        del name, step, log
        return (low, high)[self._turn % 2]

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        del name
        return choices[self._turn % len(choices)]


class _Chance:
    """Takes of everything what chance gives."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        del name, log
        return self._chance.randrange(low, high + 1, step)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float:
        del name, step, log
        return self._chance.uniform(low, high)

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        del name
        return self._chance.choice(choices)
