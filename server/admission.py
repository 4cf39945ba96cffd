"""How many requests each variant has accepted and not finished, and when to refuse more.

A request is finished when its answer has been taken: an answer that nobody reads keeps its place,
as it keeps its tokens.

Owns the counts; lives on the event loop. Knows nothing of what the requests are.
"""

from __future__ import annotations

from server.catalog import VariantLimits
from server.errors import OverloadedError

_SHORTEST_RETRY_S = 0.05
_LONGEST_RETRY_S = 10.0
_SMOOTHING = 0.2


class Admission:
    """At most ``slots + max_waiting`` unfinished requests per variant."""

    def __init__(self) -> None:
        self._unfinished: dict[str, int] = {}
        self._service_s: dict[str, float] = {}  # smoothed seconds until the engine ends a request

    def unfinished(self, variant: str) -> int:
        """Accepted requests of a variant that have not ended."""
        return self._unfinished.get(variant, 0)

    def enter(self, variant: str, limits: VariantLimits, places: int = 1) -> None:
        """Take as many places as a request has choices.

        Raises:
            OverloadedError: There are not enough; it carries when one is likely.
        """
        unfinished = self.unfinished(variant)
        if unfinished + places > limits.slots + limits.max_waiting:
            # Places come free at the rate of requests that end.
            expected = self._service_s.get(variant, 1.0) / limits.slots
            raise OverloadedError(
                f"variant {variant!r} has {unfinished} unfinished requests, as many as it takes "
                f"({limits.slots} running, {limits.max_waiting} waiting); try again later.",
                retry_after_s=min(max(expected, _SHORTEST_RETRY_S), _LONGEST_RETRY_S),
            )
        self._unfinished[variant] = unfinished + places

    def served(self, variant: str, seconds: float) -> None:
        """Learn how long after its place was taken the engine ended a request.

        How long its answer is read says nothing of when the next one ends.
        """
        known = self._service_s.get(variant, seconds)
        self._service_s[variant] = known + _SMOOTHING * (seconds - known)

    def leave(self, variant: str, places: int = 1) -> None:
        """Give places back."""
        self._unfinished[variant] -= places
