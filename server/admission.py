"""How many requests each variant has accepted and not finished, and when to refuse more.

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
        self._service_s: dict[str, float] = {}  # smoothed seconds a request holds its place

    def unfinished(self, variant: str) -> int:
        """Accepted requests of a variant that have not ended."""
        return self._unfinished.get(variant, 0)

    def enter(self, variant: str, limits: VariantLimits) -> None:
        """Take a place.

        Raises:
            OverloadedError: There is none; it carries when one is likely.
        """
        unfinished = self.unfinished(variant)
        if unfinished >= limits.slots + limits.max_waiting:
            # Places come free at the rate of requests that end.
            expected = self._service_s.get(variant, 1.0) / limits.slots
            raise OverloadedError(
                f"variant {variant!r} has {unfinished} unfinished requests, as many as it takes "
                f"({limits.slots} running, {limits.max_waiting} waiting); try again later.",
                retry_after_s=min(max(expected, _SHORTEST_RETRY_S), _LONGEST_RETRY_S),
            )
        self._unfinished[variant] = unfinished + 1

    def leave(self, variant: str, held_s: float | None) -> None:
        """Give the place back; ``held_s`` seconds after it was taken, None if it was not used."""
        self._unfinished[variant] -= 1
        if held_s is None:
            return
        known = self._service_s.get(variant, held_s)
        self._service_s[variant] = known + _SMOOTHING * (held_s - known)
