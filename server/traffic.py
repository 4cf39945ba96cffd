"""Where requests that name no variant go, and which of them a candidate is compared on.

Frozen values and the steps between them: weights, a shadow, and what was there before. Knows
nothing of requests, of engines or of who may change it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

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

    def takers(self, default: str) -> frozenset[str]:
        """Those that routed traffic goes to."""
        if not self.weights:
            return frozenset({default})
        return frozenset(name for name, weight in self.weights.items() if weight > 0)

    def promoted(self, name: str) -> Traffic:
        """All traffic to one variant; a shadow of it has nothing left to be compared with."""
        shadow = self.shadow
        return Traffic({name: 1.0}, None if shadow and shadow.candidate == name else shadow)

    def among(self, serving: Callable[[str], bool], default: str) -> Traffic | None:
        """The same without those that do not serve; None where nobody would be left.

        A shadow that would be left alone with itself ends.
        """
        takers = {name for name in self.takers(default) if serving(name)}
        if not takers:
            return None
        shadow = self.shadow
        if shadow and (not serving(shadow.candidate) or takers == {shadow.candidate}):
            shadow = None
        kept = {name: weight for name, weight in self.weights.items() if serving(name)}
        return replace(self, weights=kept, shadow=shadow)


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

    def back(self, serving: Callable[[str], bool], default: str) -> bool:
        """Take the latest change back that was not taken back and can be.

        Who serves no longer is left out; what would leave nobody is passed over. Nothing is
        forgotten while nothing is found: who does not serve may serve again.

        Returns:
            Whether there was one.
        """
        for index in range(len(self._before) - 1, -1, -1):
            if (traffic := self._before[index].among(serving, default)) is not None:
                del self._before[index:]
                self.now = traffic
                return True
        return False

    def forget(self, name: str, default: str) -> None:
        """A variant is gone: never lead back to it, also when another serves under its name."""
        kept = [traffic.among(lambda one: one != name, default) for traffic in self._before]
        self._before = [traffic for traffic in kept if traffic is not None]
