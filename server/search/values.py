"""What of a stage's fields may vary: numbers between bounds, and choices of values.

Owns drawing a value and finding the one that is nearest to another. Knows nothing of how a space
is written (``server.search.notation``), of chains, of which fields a stage has, or of Optuna beyond
the three methods of a trial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_DIGITS = 4  # of a drawn float: what differs less is the same to any stage, and reads better

MISSING: Any = object()
"""What ``Value.match`` is given where there is no value to match."""

Params = dict[str, Any]
"""One point of a space: what a trial drew, by the place that it was drawn for."""


class Trial(Protocol):
    """What is drawn from; ``optuna.Trial`` is one."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """Draw an integer between the bounds, both included."""
        ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float:
        """Draw a number between the bounds."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """Draw one of the labels."""
        ...


class Value(Protocol):
    """A value of a stage's field that may vary, or hold what does."""

    def draw(self, trial: Trial) -> Any:
        """Give one value."""
        ...

    def match(self, wanted: Any, params: Params) -> float:
        """Add to ``params`` what draws the value nearest to ``wanted``; give how far off it is.

        0 is equal, 1 is another value altogether.
        """
        ...

    def size(self) -> float:
        """How many different values there are; infinite for floats without a step."""
        ...

    def names(self) -> Iterator[str]:
        """The places that something is drawn for."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """A value that does not vary."""

    value: Any

    def draw(self, trial: Trial) -> Any:
        """See ``Value``."""
        del trial
        return self.value

    def match(self, wanted: Any, params: Params) -> float:
        """See ``Value``."""
        del params
        return 0.0 if wanted is MISSING or _same(wanted, self.value) else 1.0

    def size(self) -> float:
        """See ``Value``."""
        return 1

    def names(self) -> Iterator[str]:
        """See ``Value``."""
        yield from ()


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two bounds, both included; ``is_log``: even over orders of magnitude."""

    name: str
    low: float
    high: float
    step: float | None
    is_log: bool
    is_int: bool

    def draw(self, trial: Trial) -> int | float:
        """See ``Value``."""
        if self.is_int:
            step = int(self.step or 1)
            low, high = int(self.low), int(self.high)
            return trial.suggest_int(self.name, low, high, step=step, log=self.is_log)
        drawn = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.is_log)
        digits = _DIGITS if self.step is None else 12  # a step's own multiples, without 0.30000004
        return min(max(float(f"{drawn:.{digits}g}"), self.low), self.high)

    def match(self, wanted: Any, params: Params) -> float:
        """See ``Value``."""
        if not is_number(wanted):
            params[self.name] = self._number(self.low)
            return 0.0 if wanted is MISSING else 1.0
        near = min(max(float(wanted), self.low), self.high)
        if (step := self.step or (1 if self.is_int else None)) is not None:
            near = min(self.low + round((near - self.low) / step) * step, self.high)
        params[self.name] = self._number(near)
        return _distance(near, float(wanted))

    def size(self) -> float:
        """See ``Value``."""
        if self.low == self.high:
            return 1
        step = self.step or (1 if self.is_int else None)
        return math.inf if step is None else round((self.high - self.low) / step) + 1

    def names(self) -> Iterator[str]:
        """See ``Value``."""
        yield self.name

    def _number(self, value: float) -> int | float:
        return round(value) if self.is_int else value


@dataclass(frozen=True, slots=True)
class Options:
    """One of several values, each of any kind. Drawn by label, so that 1 and true stay apart."""

    name: str
    values: tuple[Any, ...]

    def draw(self, trial: Trial) -> Any:
        """See ``Value``."""
        labels = self._labels()
        return self.values[labels.index(trial.suggest_categorical(self.name, labels))]

    def match(self, wanted: Any, params: Params) -> float:
        """See ``Value``."""
        labels = self._labels()
        if is_number(wanted) and not any(_same(wanted, value) for value in self.values):
            numbers = [index for index, value in enumerate(self.values) if is_number(value)]
            if numbers:
                near = min(numbers, key=lambda index: abs(self.values[index] - wanted))
                params[self.name] = labels[near]
                return _distance(self.values[near], wanted)
        equal = [
            label for label, value in zip(labels, self.values, strict=True) if _same(value, wanted)
        ]
        params[self.name] = equal[0] if equal else labels[0]
        return 0.0 if equal or wanted is MISSING else 1.0

    def size(self) -> float:
        """See ``Value``."""
        return len(self.values)

    def names(self) -> Iterator[str]:
        """See ``Value``."""
        yield self.name

    def _labels(self) -> list[str]:
        return [label_of(value) for value in self.values]


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping of which at least one value varies."""

    values: tuple[tuple[str, Value], ...]

    def draw(self, trial: Trial) -> dict[str, Any]:
        """See ``Value``."""
        return {key: value.draw(trial) for key, value in self.values}

    def match(self, wanted: Any, params: Params) -> float:
        """See ``Value``."""
        given = wanted if isinstance(wanted, Mapping) else {}
        off = [value.match(given.get(key, MISSING), params) for key, value in self.values]
        return sum(off) / max(len(off), 1)

    def size(self) -> float:
        """See ``Value``."""
        return math.prod(value.size() for _, value in self.values)

    def names(self) -> Iterator[str]:
        """See ``Value``."""
        for _, value in self.values:
            yield from value.names()


@dataclass(frozen=True, slots=True)
class Items:
    """A list of which at least one value varies."""

    values: tuple[Value, ...]

    def draw(self, trial: Trial) -> list[Any]:
        """See ``Value``."""
        return [value.draw(trial) for value in self.values]

    def match(self, wanted: Any, params: Params) -> float:
        """See ``Value``."""
        given = list(wanted) if isinstance(wanted, (list, tuple)) else []
        given += [MISSING] * len(self.values)
        off = [value.match(one, params) for value, one in zip(self.values, given, strict=False)]
        return sum(off) / max(len(off), 1)

    def size(self) -> float:
        """See ``Value``."""
        return math.prod(value.size() for value in self.values)

    def names(self) -> Iterator[str]:
        """See ``Value``."""
        for value in self.values:
            yield from value.names()


def label_of(value: Any) -> str:
    """One value as what it is drawn by: its JSON."""
    return json.dumps(value, sort_keys=True, default=str)


def is_number(value: Any) -> bool:
    """Whether it is a number, which true is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same(one: Any, other: Any) -> bool:
    return other is not MISSING and one is not MISSING and label_of(one) == label_of(other)


def _distance(near: float, wanted: float) -> float:
    """How far off a number is, 0..1."""
    return min(abs(near - wanted) / max(abs(wanted), 1e-12), 1.0)
