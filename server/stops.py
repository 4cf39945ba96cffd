"""Stop strings in a growing text: found across the borders of pieces, never leaked in part.

Works character by character with one Knuth-Morris-Pratt automaton per stop string, so the cost
per character does not depend on the length of the strings, and the result does not depend on how
the text was cut into pieces. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """One text's state. The match that is complete first wins; of equals, the longest."""

    __slots__ = ("_failures", "_held", "_states", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        # The longest first, so that it wins over others which end at the same character.
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._failures = [_failure_table(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)  # characters of each stop that the text ends with
        self._held = ""  # the longest end of the text that may become a stop
        self.matched: str | None = None

    def push(self, piece: str) -> str:
        """Take the next piece; return the text that is certainly not part of a stop.

        Once ``matched`` is set, what was returned is all the text before the stop, and further
        pieces are ignored.
        """
        if self.matched is not None:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        states = self._states
        for position, character in enumerate(piece, start=len(self._held) + 1):
            for index, stop in enumerate(self._stops):
                state = states[index]
                while state and stop[state] != character:
                    state = self._failures[index][state]
                if stop[state] == character:
                    state += 1
                if state == len(stop):
                    self.matched = stop
                    self._held = ""
                    return text[: position - state]
                states[index] = state
        certain = len(text) - max(states)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """End the text: what was held back was no stop after all."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held


def _failure_table(stop: str) -> list[int]:
    """For each length, the longest proper prefix of ``stop`` that ends its first ``length``."""
    table = [0, 0]
    state = 0
    for character in stop[1:]:
        while state and stop[state] != character:
            state = table[state]
        if stop[state] == character:
            state += 1
        table.append(state)
    return table
