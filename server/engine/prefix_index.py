"""Finds, among the tokens of all slots, the longest beginning that a prompt has in common.

A hash per block of tokens, chained with the one before, leads from block to block (the scheme of
vLLM's automatic prefix caching, Kwon et al., "Efficient memory management for large language model
serving with PagedAttention", SOSP 2023), so that a look takes time by the prompt's length alone,
however much is remembered. Hashes only lead there: what is found was compared token by token. Knows
nothing of what slots are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK = 16
"""Tokens of a block; shorter common beginnings are not found."""


class PrefixIndex:
    """Tokens by slot."""

    def __init__(self) -> None:
        self._tokens: dict[int, NDArray[np.int64]] = {}
        self._slots: dict[int, dict[int, None]] = {}  # by a block's chained hash; in order

    def add(self, slot: int, tokens: NDArray[np.int64]) -> None:
        """Remember a slot's tokens, in the place of what was known of it."""
        self.remove(slot)
        self._tokens[slot] = tokens
        for key in _keys(tokens):
            self._slots.setdefault(key, {})[slot] = None

    def remove(self, slot: int) -> None:
        """Forget a slot; one that is not known is ignored."""
        tokens = self._tokens.pop(slot, None)
        if tokens is None:
            return
        for key in _keys(tokens):
            slots = self._slots[key]
            slots.pop(slot, None)
            if not slots:
                del self._slots[key]

    def clear(self) -> None:
        """Forget everything."""
        self._tokens.clear()
        self._slots.clear()

    def longest(self, tokens: NDArray[np.int64]) -> tuple[int | None, int]:
        """A slot with the longest common beginning, and its length; (None, 0) below a block."""
        alike: dict[int, None] = {}
        for key in _keys(tokens):
            if (slots := self._slots.get(key)) is None:
                break
            alike = slots
        best, longest = None, BLOCK - 1
        for slot in alike:
            length = common(self._tokens[slot], tokens)
            if length > longest:
                best, longest = slot, length
        return best, (longest if best is not None else 0)

    def alike(self, tokens: NDArray[np.int64]) -> tuple[int, ...]:
        """All slots that begin with the same block."""
        key = next(_keys(tokens), None)
        slots = self._slots.get(key, {}) if key is not None else {}
        return tuple(slot for slot in slots if common(self._tokens[slot], tokens) >= BLOCK)


def common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """With how many equal tokens the two begin."""
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if len(differs) else length


def _keys(tokens: NDArray[np.int64]) -> Iterator[int]:
    """The chained hash of each whole block."""
    whole = tokens[: len(tokens) // BLOCK * BLOCK].tobytes()
    width = BLOCK * tokens.itemsize
    key = 0
    for start in range(0, len(whole), width):
        key = hash((key, whole[start : start + width]))
        yield key
