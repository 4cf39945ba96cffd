"""Drafts what followed the last time that the same few tokens came, in prompt or answer.

Saxena, "Prompt lookup decoding", 2023. Costs no model and next to no time; right where an answer
repeats its prompt: summaries, edits of code, retrieved passages. Owns an index per sequence, which
grows with it, so that a look takes the same time however long the sequence is.
"""

from __future__ import annotations

from collections.abc import Iterable

from artifacts.errors import BugError
from server.engine.sequence import Sequence

_LONG, _SHORT = 3, 2  # tokens that must be alike; the longer ones are looked for first
_BITS = 21  # of a token id within a key: vocabularies have less than two million tokens


class NgramIndex:
    """Where each n-gram of a sequence's tokens ended last."""

    def __init__(self) -> None:
        self._ends: dict[int, dict[int, int]] = {_LONG: {}, _SHORT: {}}
        self._indexed = 0  # ends below this are in

    def find(self, sequence: Sequence) -> int | None:
        """Where what followed the sequence's last tokens before begins; None: nothing did."""
        self._extend(sequence)
        tokens, known = sequence.tokens, sequence.known
        for size in (_LONG, _SHORT):
            if known > size:
                key = _key(tokens[known - size : known].tolist())
                if (end := self._ends[size].get(key)) is not None:
                    return end
        return None

    def _extend(self, sequence: Sequence) -> None:
        """Take in all n-grams but the last ones, which nothing follows yet."""
        begin, end = self._indexed, sequence.known
        if begin >= end:
            return
        self._indexed = end
        for size, ends in self._ends.items():
            first = max(begin, size)
            if first >= end:
                continue
            tokens = sequence.tokens[first - size : end - 1]
            keys = tokens[: len(tokens) - size + 1].copy()
            for offset in range(1, size):
                keys <<= _BITS
                keys |= tokens[offset : len(tokens) - size + 1 + offset]
            ends.update(zip(keys.tolist(), range(first, end), strict=True))


class PromptLookup:
    """Implements ``Drafter``."""

    round_s = 0.0

    def reach(self, sequence: Sequence) -> int:
        """See ``Drafter.reach``."""
        if sequence.lookup is None:
            sequence.lookup = NgramIndex()
        return 0 if sequence.lookup.find(sequence) is None else sequence.missing

    def draft(self, wanted: Iterable[tuple[Sequence, int]]) -> list[int]:
        """See ``Drafter.draft``."""
        counts = []
        for sequence, count in wanted:
            index = sequence.lookup
            followed = None if index is None else index.find(sequence)
            if followed is None:
                raise BugError("A sequence that nothing is known of was to be drafted for.")
            # One after another: what repeats itself goes on into what is just being written.
            offset = sequence.known - followed
            for place in range(sequence.known, sequence.known + count):
                sequence.tokens[place] = sequence.tokens[place - offset]
            counts.append(count)
        return counts

    def copied(self, source: int, target: int, length: int) -> None:
        """See ``Drafter.copied``."""

    def released(self, slot: int, keep: int) -> None:
        """See ``Drafter.released``."""

    def terminate(self) -> None:
        """See ``Drafter.terminate``."""


def _key(tokens: list[int]) -> int:
    key = 0
    for token in tokens:
        key = key << _BITS | token
    return key
