"""Where requests that name no variant go, and which of them a candidate is compared on.

Frozen values and the steps between them: weights, a shadow, and what was there before. Knows
nothing of requests, of engines or of who may change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_REMEMBERED = 32


@dataclass(frozen=True, slots=True)
class Shadow:
    """A variant that is judged on what others answer; its own output is never returned.

    Attributes:
        candidate: Its name.
        fraction: Of the answered requests, 0..1, that it is judged on.
    """

    candidate: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Weight of each variant that takes part (empty: the default takes all), and the shadow."""

    weights: Mapping[str, float] = field(default_factory=dict)
    shadow: Shadow | None = None

    def promoted(self, name: str) -> Traffic:
        """All traffic to one variant; a shadow of it has nothing left to be compared with."""
        shadow = self.shadow
        return Traffic({name: 1.0}, None if shadow and shadow.candidate == name else shadow)

    def without(self, name: str) -> Traffic:
        """Nothing to one variant."""
        weights = {other: weight for other, weight in self.weights.items() if other != name}
        shadow = self.shadow
        return Traffic(weights, None if shadow and shadow.candidate == name else shadow)


class History:
    """Traffic as it is, and what it was before each change."""

    def __init__(self, traffic: Traffic) -> None:
        self.now = traffic
        self._before: list[Traffic] = []

    def change(self, traffic: Traffic) -> None:
        """Set another one."""
        self._before.append(self.now)
        del self._before[:-_REMEMBERED]
        self.now = traffic

    def back(self) -> Traffic | None:
        """What was there before the latest change that was not taken back; None if nothing."""
        return self._before.pop() if self._before else None

    def forget(self, name: str) -> None:
        """A variant is gone: never lead back to it."""
        self._before = [traffic.without(name) for traffic in self._before]
