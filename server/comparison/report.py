"""A finished comparison as one value: what every form of the report is written from.

Owns nothing but the value. Knows nothing of JSON, Markdown or HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.comparison.figures import VariantFigures
from server.comparison.findings import Findings
from server.comparison.machine import Machine


@dataclass(frozen=True, slots=True)
class Report:
    """One comparison.

    Attributes:
        model: Id of the original model.
        revision: Its revision.
        text: What quality was measured on, in words.
        machine: Where speed was measured.
        began: When, ISO 8601.
        rounds: How many were asked for.
        complete: Whether all of them were run.
        quick: Whether each figure is of a short moment.
        variants: All figures, the baseline first.
        findings: Of each variant but the baseline.
        failed: Why variants could not be built, by name.
    """

    model: str
    revision: str
    text: str
    machine: Machine
    began: str
    rounds: int
    complete: bool
    quick: bool
    variants: tuple[VariantFigures, ...]
    findings: Mapping[str, Findings]
    failed: Mapping[str, str]

    @property
    def baseline(self) -> VariantFigures:
        """What the others are compared with."""
        return self.variants[0]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know before the figures."""
        said = []
        if not self.complete:
            said.append(
                "Incomplete: the comparison was interrupted, and holds what was measured so far."
            )
        if self.quick:
            said.append("Quick: each figure is of a short moment, good for large differences only.")
        rounds = sum(len(variant.rounds) for variant in self.variants)
        disturbed = sum(variant.disturbed for variant in self.variants)
        if disturbed:
            said.append(
                f"Under load: in {disturbed} of {rounds} turns other processes used the machine; "
                "speeds that were taken then are marked with an asterisk."
            )
        said += [f"{name} was not built: {error}" for name, error in self.failed.items()]
        said += [
            f"{variant.name} was not (fully) measured: {variant.failure}"
            for variant in self.variants
            if variant.failure
        ]
        return tuple(said)
