"""Whose step is next when several variants are busy.

Deficit round-robin (Shreedhar and Varghese, "Efficient fair queueing using deficit round-robin",
SIGCOMM 1995) over engine seconds: each busy lane gets a quantum in proportion to its weight and
steps until it is used up. Knows nothing of what a step does.
"""

from __future__ import annotations

from collections.abc import Iterable

from artifacts.errors import BugError

QUANTUM_S = 0.05
"""Seconds that the heaviest lane may use before others get their turn."""


class Turns:
    """Credits of the lanes, by name."""

    def __init__(self) -> None:
        self._credit_s: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._order: list[str] = []

    def add(self, name: str, weight: float) -> None:
        """Let a lane take part; weights are positive and count relative to each other."""
        if weight <= 0.0:
            raise BugError(f"Lane {name} has weight {weight} and would never get a turn.")
        self._weights[name] = weight
        self._credit_s[name] = 0.0
        self._order.append(name)

    def remove(self, name: str) -> None:
        """Take a lane out."""
        del self._weights[name], self._credit_s[name]
        self._order.remove(name)

    def next(self, busy: Iterable[str]) -> str | None:
        """The busy lane whose step comes next; idle lanes keep no credit."""
        names = set(busy)
        for name in self._order:
            if name not in names:
                self._credit_s[name] = 0.0
        if not names:
            return None
        current = self._order[0]
        if current in names and self._credit_s[current] > 0.0:
            return current
        if len(names) == 1:
            (only,) = names
            self._credit_s[only] = 0.0
            self._lead(only)
            return only
        return self._rotate(names)

    def charge(self, name: str, seconds: float) -> None:
        """Note what a lane's step took."""
        if name in self._credit_s:
            self._credit_s[name] -= seconds

    def _rotate(self, names: set[str]) -> str:
        """Give lanes their quantum in turn until one has credit; it leads the order then."""
        heaviest = max(self._weights[name] for name in names)
        while True:
            self._order.append(self._order.pop(0))
            name = self._order[0]
            if name not in names:
                continue
            self._credit_s[name] += QUANTUM_S * self._weights[name] / heaviest
            if self._credit_s[name] > 0.0:
                return name

    def _lead(self, name: str) -> None:
        self._order.remove(name)
        self._order.insert(0, name)
