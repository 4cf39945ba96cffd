"""How many requests each variant has accepted and not finished, and when to refuse more.

A request is finished when its answer has been taken: an answer that nobody reads keeps its place,
as it keeps its tokens. Beside the number of places two things refuse a request: that it would wait
for a slot longer than anybody may, judged by how fast requests have ended lately while all slots
were taken; and that its client would leave no place for those who hold less than their share.

Owns the counts; lives on the event loop. Knows nothing of what the requests are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from server.catalog import VariantLimits
from server.errors import OverloadedError

SHORTEST_RETRY_S = 0.05
LONGEST_RETRY_S = 10.0
KEPT_SHARE = 8
"""One of so many places is kept for clients that hold less than their share."""

# How much an end counts, against all before it, in the pace that is learnt.
_SMOOTHING = 0.05
_UNKNOWN_S = 1.0  # what a request takes of a slot, as long as nothing is known


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request asks for.

    Attributes:
        places: One for each of its choices.
        client: Who asks.
        priority: Lower ones go first.
    """

    places: int = 1
    client: str = ""
    priority: int = 0


class Admission:
    """At most ``slots + max_waiting`` unfinished requests per variant.

    Args:
        clock: Monotonic seconds.
        max_queue_s: How long a request may wait for a slot.
        clients: How many clients share the places; with fewer than two, nothing is kept for others.
    """

    def __init__(
        self, clock: Callable[[], float], *, max_queue_s: float = 30.0, clients: int = 0
    ) -> None:
        self._clock = clock
        self._max_queue_s = max_queue_s
        self._clients = clients
        self._variants: dict[str, _Counts] = {}

    def unfinished(self, variant: str) -> int:
        """Accepted requests of a variant that have not ended."""
        counts = self._variants.get(variant)
        return 0 if counts is None else counts.held.total()

    def enter(self, variant: str, limits: VariantLimits, claim: Claim) -> None:
        """Take as many places as a request has choices.

        Raises:
            OverloadedError: There are not enough, or it would wait too long; it carries when to
                come back.
        """
        counts = self._variants.setdefault(variant, _Counts())
        counts.slots = limits.slots
        places = limits.slots + limits.max_waiting
        unfinished = counts.held.total()
        if unfinished + claim.places > places:
            raise OverloadedError(
                f"variant {variant!r} has {unfinished} unfinished requests, as many as it takes "
                f"({limits.slots} running, {limits.max_waiting} waiting); try again later.",
                retry_after_s=self.retry_after_s(variant),
            )
        if self._takes_from_others(counts, claim, places):
            raise OverloadedError(
                f"this client has {counts.held[claim.client]} of the {places} places of variant "
                f"{variant!r}, and those that are left are kept for others; try again later.",
                retry_after_s=self.retry_after_s(variant),
            )
        wait_s = counts.wait_s(claim)
        if wait_s > self._max_queue_s:
            raise OverloadedError(
                f"variant {variant!r} would need about {wait_s:.0f} s to begin with this, and "
                f"requests wait at most {self._max_queue_s:g} s; try again later.",
                retry_after_s=_bounded(wait_s - self._max_queue_s),
            )
        counts.enter(claim, self._clock())

    def ended(self, variant: str, claim: Claim, *, had_slot: bool) -> None:
        """One choice of a request needs no slot any more; whether it had one teaches the pace.

        How long its answer is read says nothing of when the next one ends.
        """
        self._variants[variant].ended(claim, self._clock(), had_slot=had_slot)

    def leave(self, variant: str, claim: Claim) -> None:
        """Give places back."""
        held = self._variants[variant].held
        held[claim.client] -= claim.places
        if not held[claim.client]:
            del held[claim.client]

    def retry_after_s(self, variant: str) -> float:
        """Seconds until a place is likely to come free."""
        counts = self._variants.get(variant)
        return _bounded(_UNKNOWN_S if counts is None else counts.seconds_per_end)

    def _takes_from_others(self, counts: _Counts, claim: Claim, places: int) -> bool:
        unfinished = counts.held.total()
        if self._clients < 2 or not unfinished:
            return False
        share = max(places // self._clients, 1)
        kept = max(places // KEPT_SHARE, 1)
        return (
            counts.held[claim.client] + claim.places > share
            and unfinished + claim.places > places - kept
        )


class _Counts:
    """One variant's."""

    def __init__(self) -> None:
        self.slots = 1
        self.held: Counter[str] = Counter()  # places, by client
        # Choices that the engine has not ended, by priority and client.
        self._open: Counter[tuple[int, str]] = Counter()
        self._since_s = 0.0  # the last end, or when the last slot was taken
        # Both of them forget at the same pace, so that their ratio is a recent mean.
        self._seconds = 0.0
        self._ends = 0.0

    @property
    def seconds_per_end(self) -> float:
        """Between two requests that end while all slots are taken."""
        return self._seconds / self._ends if self._ends else _UNKNOWN_S / self.slots

    def wait_s(self, claim: Claim) -> float:
        """Until the last of its choices has a slot; 0 where nothing is known."""
        if not self._ends:
            return 0.0
        own = self._open[claim.priority, claim.client]
        ahead = 0
        for (priority, client), count in self._open.items():
            if priority < claim.priority or (priority, client) == (claim.priority, claim.client):
                ahead += count
            elif priority == claim.priority:  # clients take turns
                ahead += min(count, own + claim.places)
        # Whoever is next in turn waits for a slot all the same while there is none.
        free = max(self.slots - self._open.total(), 0)
        ends = claim.places + max(ahead - self.slots, -free)
        return max(ends, 0) * self.seconds_per_end

    def enter(self, claim: Claim, now_s: float) -> None:
        busy = self._open.total() >= self.slots
        self.held[claim.client] += claim.places
        self._open[claim.priority, claim.client] += claim.places
        if not busy:
            self._since_s = now_s

    def ended(self, claim: Claim, now_s: float, *, had_slot: bool) -> None:
        if had_slot and self._open.total() >= self.slots:
            keep = 1.0 - _SMOOTHING
            self._seconds = keep * self._seconds + max(now_s - self._since_s, 0.0)
            self._ends = keep * self._ends + 1.0
            self._since_s = now_s
        key = (claim.priority, claim.client)
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]


def _bounded(seconds: float) -> float:
    return min(max(seconds, SHORTEST_RETRY_S), LONGEST_RETRY_S)
