"""How often drafted tokens were right lately. Knows nothing of tokens or of who drafted them."""

from __future__ import annotations

_MEMORY = 0.9  # of what was seen before, at each draft: about the latest ten count
_DOUBT = 0.97  # of what is held against drafting, at each time that it was not tried
_PRIOR = 2.0  # drafts that a beginning is worth
_MOST = 0.98  # nothing is certain


class Acceptance:
    """Right and wrong ones, each draft forgetting a little of those before."""

    __slots__ = ("_right", "_wrong")

    def __init__(self, rate: float = 0.5) -> None:
        self._right = _PRIOR * rate
        self._wrong = _PRIOR * (1.0 - rate)

    @property
    def rate(self) -> float:
        """The probability that the next drafted token is right, if those before it are."""
        return min(self._right / (self._right + self._wrong), _MOST)

    def learn(self, drafted: int, accepted: int) -> None:
        """Of so many drafted tokens the first ``accepted`` were right."""
        self._right = _MEMORY * self._right + accepted
        self._wrong = _MEMORY * self._wrong + (accepted < drafted)

    def hope(self) -> None:
        """Drafting was not worth its cost: be a little more ready to try it again."""
        self._wrong *= _DOUBT
