"""What a search knows of each chain that it has come across, as frozen values.

Owns the kinds of endings and their JSON. Knows nothing of how it came about or of where it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self


class Kind(StrEnum):
    """How a trial ended."""

    MEASURED = "measured"
    """Built, within the budget, and its speed was taken."""
    OVER_BUDGET = "over_budget"
    """Built and not within the budget, so that its speed did not matter."""
    FAILED = "failed"
    """Its build failed."""
    REFUSED = "refused"
    """No chain to build: the optimizer refused it before any work."""
    REPEATED = "repeated"
    """The same was tried before."""
    KNOWN = "known"
    """The same as a hand-written variant, whose figures it takes over."""
    ABANDONED = "abandoned"
    """Stopped, or its process was killed; begun again under another number."""


COUNTED = frozenset({Kind.MEASURED, Kind.OVER_BUDGET, Kind.FAILED})
"""What took work, and so counts as one of the trials that were asked for."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one chain.

    Attributes:
        kind: How it ended.
        recipe: Digest of the recipe; empty when there is none.
        artifact: Digest of the artifact; empty when there is none.
        measures: Figures by name.
        violations: By limit of the budget, by which share it is exceeded; at most 0 is within.
        reason: Why it ended like this, for a person.
    """

    kind: Kind
    recipe: str = ""
    artifact: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    violations: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the storage and the report."""
        return {
            "kind": self.kind.value,
            "recipe": self.recipe,
            "artifact": self.artifact,
            "measures": dict(self.measures),
            "violations": dict(self.violations),
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what ``as_json`` gave."""
        return cls(**{**content, "kind": Kind(content["kind"])})


@dataclass(frozen=True, slots=True)
class Record:
    """One finished trial.

    Attributes:
        number: In the study.
        result: What came of it.
        variant: Whose space it was drawn from.
        value: The variant as a config has it.
        origin: The known recipe that it is from; empty when it was drawn.
        seconds: How long it took.
        host: Name of the machine.
    """

    number: int
    result: Result
    variant: str = ""
    value: Any = None
    origin: str = ""
    seconds: float = 0.0
    host: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "number": self.number,
            "variant": self.variant,
            "value": self.value,
            "origin": self.origin,
            **self.result.as_json(),
            "seconds": round(self.seconds, 3),
            "host": self.host,
        }


@dataclass(frozen=True, slots=True)
class Known:
    """A hand-written variant with its figures."""

    name: str
    value: Any
    result: Result
