"""What a search may strive for, and where a figure comes from.

Owns the objectives' names, directions and units. Knows nothing of how anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Measures = Mapping[str, float]
"""Figures of one variant by name: ``kl_mean``, ``decode_1``, ``resident_bytes``, ..."""


class ObjectiveName(StrEnum):
    """What can be strived for."""

    QUALITY = "quality"
    DECODE = "decode"
    DECODE_8 = "decode_8"
    PREFILL = "prefill"
    MEMORY = "memory"
    SIZE = "size"


@dataclass(frozen=True, slots=True)
class Objective:
    """One thing to strive for.

    Attributes:
        name: As in ``search.objectives``.
        measure: The figure that it is, among the measures.
        direction: Whether less or more of it is better.
        title: Of its column, with the unit.
        shown: Format of the figure.
        per: What one shown unit is of the figure's own.
        is_timed: Whether it differs from measurement to measurement.
    """

    name: ObjectiveName
    measure: str
    direction: Literal["minimize", "maximize"]
    title: str
    shown: str
    per: float = 1.0
    is_timed: bool = False

    def loss(self, measures: Measures) -> float:
        """The figure, turned so that less is better."""
        value = measures[self.measure]
        return value if self.direction == "minimize" else -value

    def show(self, measures: Measures) -> str:
        """The figure for a person; empty when it was not measured."""
        value = measures.get(self.measure)
        return "" if value is None else format(value / self.per, self.shown)


_N = ObjectiveName

OBJECTIVES: Mapping[ObjectiveName, Objective] = {
    one.name: one
    for one in (
        Objective(_N.QUALITY, "kl_mean", "minimize", "KL mean", ".5f"),
        Objective(_N.DECODE, "decode_1", "maximize", "decode tok/s", ",.0f", is_timed=True),
        Objective(_N.DECODE_8, "decode_8", "maximize", "8 streams tok/s", ",.0f", is_timed=True),
        Objective(_N.PREFILL, "prefill", "maximize", "prefill tok/s", ",.0f", is_timed=True),
        Objective(_N.MEMORY, "resident_bytes", "minimize", "memory MB", ",.1f", 1e6, is_timed=True),
        Objective(_N.SIZE, "size_bytes", "minimize", "size MB", ",.2f", 1e6),
    )
}


def chosen(names: Sequence[ObjectiveName]) -> tuple[Objective, ...]:
    """The objectives of these names."""
    return tuple(OBJECTIVES[name] for name in names)
