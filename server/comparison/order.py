"""Who comes when. Knows numbers only."""

from __future__ import annotations


def order(count: int, round_: int) -> list[int]:
    """Indices in a round: each round begins elsewhere and every other one runs backwards."""
    forward = [(index + round_) % count for index in range(count)]
    return forward[::-1] if round_ % 2 else forward
