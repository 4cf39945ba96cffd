"""Waits between tokens, as a client sees them. Knows nothing of requests or of gRPC."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def token_gaps_s(arrivals: Sequence[tuple[float, int]]) -> tuple[float, ...]:
    """Seconds before each token after the first message's.

    Args:
        arrivals: When each message with tokens came, in seconds, and how many it held. A message's
            wait is divided over its tokens.
    """
    gaps: list[float] = []
    for (before, _), (now, count) in itertools.pairwise(arrivals):
        gaps += [(now - before) / count] * count
    return tuple(gaps)
