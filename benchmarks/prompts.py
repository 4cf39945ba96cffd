"""The prompts that every contender gets, as token ids.

No two are alike within a run, so that nobody answers from a remembered beginning; yet all
contenders get the same ones in the same round. Knows nothing of models but their vocabulary.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Prompts:
    """Draws prompts; the same arguments always give the same ones."""

    vocabulary: int
    seed: int = 0

    def draw(self, purpose: str, round_: int, count: int, length: int) -> list[list[int]]:
        """(count, length) token ids; id 0 ends a text and is left out."""
        rng = np.random.default_rng([self.seed, zlib.crc32(purpose.encode()), round_])
        ids: list[list[int]] = rng.integers(1, self.vocabulary, (count, length)).tolist()
        return ids
