"""What a decode step costs by how many tokens it computes, as measured lately.

Kernels do not cost in proportion: some take two tokens for the price of one, some three for three.
Knows nothing of sequences.
"""

from __future__ import annotations

from bisect import bisect_left, insort

_WEIGHT = 0.25  # of the newest of several measures
_LEAST_S = 1e-6  # nothing is free
_AGE = 512  # steps after which a measure says nothing any more


class StepCosts:
    """Seconds by tokens; what was never measured is hoped to be free, so that it is tried."""

    def __init__(self) -> None:
        self._counts: list[int] = []  # ascending, those that have a measure
        self._seconds: dict[int, float] = {}
        self._noted: dict[int, int] = {}
        self._steps = 0

    def note(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._steps += 1
        seconds = max(seconds, _LEAST_S)
        known = self._seconds.get(tokens)
        if known is None:
            insort(self._counts, tokens)
            known = seconds
        self._seconds[tokens] = known + _WEIGHT * (seconds - known)
        self._noted[tokens] = self._steps
        if self._steps % _AGE == 0:
            self._forget()

    def knows(self, tokens: int) -> bool:
        """Whether there is a measure of just so many."""
        return tokens in self._seconds

    def estimate(self, tokens: int) -> float:
        """Seconds of a step of so many; between two measures on the line, above all as the last."""
        if (known := self._seconds.get(tokens)) is not None:
            return known
        above = bisect_left(self._counts, tokens)
        if above == len(self._counts):
            return self._seconds[self._counts[-1]] if self._counts else 0.0
        high = self._counts[above]
        if above == 0:
            return self._seconds[high]
        low = self._counts[above - 1]
        share = (tokens - low) / (high - low)
        return self._seconds[low] + share * (self._seconds[high] - self._seconds[low])

    def _forget(self) -> None:
        oldest = self._steps - _AGE
        self._counts = [count for count in self._counts if self._noted[count] > oldest]
        self._seconds = {count: self._seconds[count] for count in self._counts}
        self._noted = {count: self._noted[count] for count in self._counts}
