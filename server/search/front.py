"""The Pareto front: what nothing else is better than in every respect.

Owns dominance, and choosing few points that stand for many. Losses only: less is better in every
coordinate. Knows nothing of what they measure or of how exact they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Losses = Sequence[float]


def dominates(one: Losses, other: Losses) -> bool:
    """Whether ``one`` is nowhere worse than ``other`` and somewhere better."""
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def front(points: Mapping[str, Losses]) -> list[str]:
    """The names of the points that no other dominates, in their order."""
    return [
        name
        for name, losses in points.items()
        if not any(dominates(other, losses) for other in points.values())
    ]


def spread(points: Mapping[str, Losses], count: int) -> list[str]:
    """At most ``count`` of the points: the best of each coordinate, then whatever is farthest off.

    Distances are taken with every coordinate scaled to 0..1 over all points.
    """
    if len(points) <= count:
        return list(points)
    scaled = _scaled(points)
    best = [min(scaled, key=lambda name: scaled[name][axis]) for axis in range(_axes(points))]
    kept = list(dict.fromkeys(best))[:count]
    while len(kept) < count:
        left = [name for name in scaled if name not in kept]
        kept.append(
            max(left, key=lambda name: min(math.dist(scaled[name], scaled[one]) for one in kept))
        )
    return [name for name in points if name in kept]


def _scaled(points: Mapping[str, Losses]) -> dict[str, list[float]]:
    columns = list(zip(*points.values(), strict=True))
    lows, highs = [min(one) for one in columns], [max(one) for one in columns]
    return {
        name: [
            (value - low) / (high - low) if high > low else 0.0
            for value, low, high in zip(losses, lows, highs, strict=True)
        ]
        for name, losses in points.items()
    }


def _axes(points: Mapping[str, Losses]) -> int:
    return len(next(iter(points.values())))
