"""Whose step is next when several variants are busy.

Start-time fair queueing (Goyal, Vin and Cheng, "Start-time fair queuing", SIGCOMM 1996) over engine
seconds: each lane has used some seconds per weight, and the busy one that has used least is next. A
step is not cut short, so a lane may get ahead by one long step; it then stays behind the others
until they have caught up, also if it was idle for a moment. Knows nothing of what a step does.
"""

from __future__ import annotations

from collections.abc import Iterable

from artifacts.errors import BugError


class Turns:
    """Engine seconds per weight that the lanes have used, by name."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._used: dict[str, float] = {}
        self._now = 0.0  # what the lane whose turn it is had used when it began

    def add(self, name: str, weight: float) -> None:
        """Let a lane take part; weights are positive and count relative to each other."""
        if weight <= 0.0:
            raise BugError(f"Lane {name} has weight {weight} and would never get a turn.")
        self._weights[name] = weight
        self._used[name] = self._now

    def weigh(self, name: str, weight: float) -> None:
        """Give a lane another weight from now on; what it has used stays as it was counted."""
        if weight <= 0.0:
            raise BugError(f"Lane {name} has weight {weight} and would never get a turn.")
        if name in self._weights:
            self._weights[name] = weight

    def remove(self, name: str) -> None:
        """Take a lane out."""
        del self._weights[name], self._used[name]

    def next(self, busy: Iterable[str]) -> str | None:
        """The busy lane whose step comes next.

        Idle lanes move along: they save nothing up, but are not forgiven what they are ahead
        either. Once all are idle nobody is ahead: whoever wanted engine time has had it.
        """
        names = set(busy)
        wanting = [name for name in self._used if name in names]
        name = min(wanting, key=lambda name: self._used[name], default=None)
        self._now = max(self._used.values(), default=0.0) if name is None else self._used[name]
        for idle in self._used.keys() - names:
            self._used[idle] = max(self._used[idle], self._now)
        return name

    def charge(self, name: str, seconds: float) -> None:
        """Note what a lane's step took."""
        if name in self._used:
            self._used[name] += seconds / self._weights[name]
