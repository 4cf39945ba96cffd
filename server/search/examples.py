"""Points of a space that are drawn without Optuna, so that a space can be judged before a search.

Knows nothing of spaces but that they are drawn from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

_CYCLES = 24
_RANDOM = 16


@dataclass(frozen=True, slots=True)
class Example:
    """A trial (``server.search.values.Trial``) that remembers what it took of each choice.

    Attributes:
        pick: Gives an index below a count; of a range, one of the two bounds is taken.
        chosen: The label of each choice.
    """

    pick: Callable[[int], int]
    chosen: dict[str, str] = field(default_factory=dict)

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """See ``Trial``."""
        del name, step, log
        return (low, high)[self.pick(2)]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float:
        """See ``Trial``."""
        del name, step, log
        return (low, high)[self.pick(2)]

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """See ``Trial``."""
        self.chosen[name] = choices[self.pick(len(choices))]
        return self.chosen[name]


def examples() -> Iterator[Example]:
    """Trials in which both bounds and every one of up to 24 options come up, and random ones."""
    for turn in range(_CYCLES):
        yield Example(lambda count, turn=turn: turn % count)  # type: ignore[misc]
    for seed in range(_RANDOM):
        yield Example(random.Random(seed).randrange)  # noqa: S311 - no secrets
