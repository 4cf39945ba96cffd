"""When the tokens of streams came, as every worker that streams tells it.

Needs the standard library only, so that it runs in any environment. Knows nothing of who made them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any


class Stream:
    """The tokens of one, and the seconds from the beginning at which each came."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.arrivals_s: list[float] = []

    def add(self, tokens: Iterable[int], now_s: float) -> None:
        """Some came just now."""
        for token in tokens:
            self.tokens.append(int(token))
            self.arrivals_s.append(now_s)


def wait_until(moment_s: float) -> None:
    """Sleep up to a moment (monotonic): users come when they come, whatever the server does."""
    time.sleep(max(moment_s - time.monotonic(), 0.0))


def answer_of(streams: Sequence[Stream], begun_s: float, wanted: int) -> dict[str, Any]:
    """What a worker answers: all of them, and what follows from that.

    Args:
        streams: One of each prompt.
        begun_s: When (monotonic) the first was asked for.
        wanted: How many tokens each must have.

    Raises:
        RuntimeError: One has others than it should.
    """
    counts = {len(stream.tokens) for stream in streams} - {wanted}
    if counts:
        raise RuntimeError(f"A stream ended after {min(counts)} of {wanted} tokens.")
    firsts = [stream.arrivals_s[0] for stream in streams]
    return {
        "seconds": max(stream.arrivals_s[-1] for stream in streams),
        "tokens": [stream.tokens for stream in streams],
        "arrivals_s": [stream.arrivals_s for stream in streams],
        "first_token_s": firsts,
        "first_token_at_s": begun_s + min(firsts),
    }
