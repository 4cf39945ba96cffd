"""Chains of which something is left open: drawing one, matching one, telling one.

Owns the tree of a chain's spaces: stages with open fields, and alternatives in the place of an
item. Knows nothing of how they are written (``server.search.spaces``) or of which stages there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.search.values import MISSING, Fixed, Params, Trial, Value

_UNWANTED = (
    -1.0
)  # what a stage that the wanted chain lacks costs a match; one that is there gives 1


@dataclass(frozen=True, slots=True)
class StageSpace:
    """One stage, with fields that may vary."""

    value: Value

    def draw(self, trial: Trial) -> list[Any]:
        """Give the stage, as an item of a chain."""
        return [self.value.draw(trial)]

    def match(self, wanted: Sequence[Any], params: Params) -> tuple[float, list[Any]]:
        """See ``ChainSpace``."""
        head = _head(self.value)
        for index, stage in enumerate(wanted):
            if _agrees(head, stage):
                off = self.value.match(stage, params)
                return 1.0 - off, [*wanted[:index], *wanted[index + 1 :]]
        self.value.match(MISSING, params)
        return _UNWANTED, list(wanted)

    def size(self) -> float:
        """How many different stages."""
        return self.value.size()

    def names(self) -> Iterator[str]:
        """The places that something is drawn for."""
        return self.value.names()


@dataclass(frozen=True, slots=True)
class Alternatives:
    """One of several chains in the place of one item; the empty chain is ``none``."""

    name: str
    labels: tuple[str, ...]
    chains: tuple[ChainSpace, ...]

    def draw(self, trial: Trial) -> list[Any]:
        """Give the stages of the alternative that is drawn."""
        chosen = trial.suggest_categorical(self.name, list(self.labels))
        return self.chains[self.labels.index(chosen)].draw(trial)

    def match(self, wanted: Sequence[Any], params: Params) -> tuple[float, list[Any]]:
        """See ``ChainSpace``."""
        best: tuple[float, list[Any], Params] | None = None
        for label, chain in zip(self.labels, self.chains, strict=True):
            own: Params = {self.name: label}
            score, left = chain.match(wanted, own)
            if best is None or score > best[0]:
                best = score, left, own
        if best is None:  # no alternatives; reading refuses that
            return 0.0, list(wanted)
        params.update(best[2])
        return best[0], best[1]

    def size(self) -> float:
        """How many different chains."""
        return sum(chain.size() for chain in self.chains)

    def names(self) -> Iterator[str]:
        """The places that something is drawn for."""
        yield self.name
        for chain in self.chains:
            yield from chain.names()


@dataclass(frozen=True, slots=True)
class ChainSpace:
    """A chain whose items may vary."""

    items: tuple[StageSpace | Alternatives, ...]

    def draw(self, trial: Trial) -> list[Any]:
        """Give one chain."""
        return [stage for item in self.items for stage in item.draw(trial)]

    def match(self, wanted: Sequence[Any], params: Params) -> tuple[float, list[Any]]:
        """Add to ``params`` what draws the chain nearest to ``wanted``.

        Gives how much of it there is (1 per stage that is met exactly) and the stages not met.
        """
        score, left = 0.0, list(wanted)
        for item in self.items:
            gained, left = item.match(left, params)
            score += gained
        return score, left

    def size(self) -> float:
        """How many different chains; infinite with floats in it."""
        return math.prod(item.size() for item in self.items)

    def names(self) -> Iterator[str]:
        """The places that something is drawn for."""
        for item in self.items:
            yield from item.names()


def words(chain: Sequence[Any]) -> str:
    """A chain in one line."""
    stages = []
    for item in chain:
        name, fields = next(iter(item.items())) if isinstance(item, dict) else (item, {})
        told = [_word(key, value) for key, value in (fields or {}).items()]
        stages.append(" ".join([str(name), *told]))
    return ", ".join(stages) or "the original"


def _head(value: Value) -> tuple[str, Any]:
    """Name and method of a stage's space, MISSING where the method is open or not given."""
    if isinstance(value, Fixed):
        return _stage_head(value.value)
    name, fields = next(iter(getattr(value, "values", ())), ("", None))
    if isinstance(fields, Fixed):
        return name, _method(fields.value)
    given = dict(getattr(fields, "values", ())).get("method")
    return str(name), given.value if isinstance(given, Fixed) else MISSING


def _stage_head(stage: Any) -> tuple[str, Any]:
    if isinstance(stage, Mapping):
        name, fields = next(iter(stage.items()), ("", None))
        return str(name), _method(fields)
    return str(stage), MISSING


def _method(fields: Any) -> Any:
    return fields.get("method", MISSING) if isinstance(fields, Mapping) else MISSING


def _agrees(head: tuple[str, Any], stage: Any) -> bool:
    name, method = _stage_head(stage)
    return head[0] == name and (MISSING in (head[1], method) or head[1] == method)


def _word(key: str, value: Any) -> str:
    return str(value) if key == "method" or isinstance(value, str) else f"{key} {value}"
