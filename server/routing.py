"""Which variant a request that names none goes to.

Weighted rendezvous hashing (Thaler and Ravishankar 1998; weights after Schindelhauer and
Schomaker 2005): each variant draws an exponential variate at the rate of its weight, seeded by the
key and its own name, and the smallest wins. So a key stays with its variant while weights stay,
and when a variant is missing only its own keys move. Knows nothing of requests or states.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

ROUTED = "routed"
"""What faces whose clients must name a model call the traffic that is routed by weight."""


def choose(weights: Mapping[str, float], key: str, draw: Callable[[], float]) -> str | None:
    """Choose by weight.

    Args:
        weights: Of the candidates; those without weight are never chosen.
        key: The same key gets the same candidate; empty: by chance.
        draw: Uniform in [0, 1), for requests without a key.

    Returns:
        A name, or None when no candidate has weight.
    """
    best: str | None = None
    lowest = math.inf
    for name, weight in weights.items():
        if weight <= 0:
            continue
        uniform = _uniform(key, name) if key else 1.0 - draw()  # (0, 1]
        arrival = -math.log(uniform) / weight
        if best is None or arrival < lowest:
            best, lowest = name, arrival
    return best


def _uniform(key: str, name: str) -> float:
    """A number in (0, 1] that is the same in every process."""
    # The length keeps ("ab", "c") and ("a", "bc") apart.
    seed = f"{len(key)}:{key}{name}".encode()
    number = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big")
    return ((number >> 11) + 1) / 2**53
