"""Prompts of given lengths, cut from a text, none of which begins as another does.

A server that keeps what it computed for a prompt answers the next one that begins alike faster, so
every prompt begins with its number, written in tokens of the text. Knows nothing of how long
prompts are to be.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_PLACES = 3  # of the number: unlike beginnings for the cube of the distinct tokens of the text


class Prompts:
    """Cuts prompts from a text's token ids."""

    def __init__(self, text: Sequence[int], seed: int) -> None:
        """Take a text with at least one token; which ids are the digits depends on the seed."""
        self._text = text
        self._digits = sorted(set(text))
        random.Random(seed).shuffle(self._digits)  # noqa: S311 - no secret

    def draw(self, number: int, length: int, shared: int, rng: random.Random) -> list[int]:
        """The prompt of a request.

        Args:
            number: Of the request; unlike numbers give unlike beginnings, neighbours already in
                their first token.
            length: Tokens of its own.
            shared: Tokens in front of them with which all prompts begin.
            rng: Where in the text it is cut from.
        """
        text, base = self._text, len(self._digits)
        begin = [text[offset % len(text)] for offset in range(shared)]
        own = [self._digits[number // base**place % base] for place in range(min(_PLACES, length))]
        start = rng.randrange(len(text))
        rest = [text[(start + offset) % len(text)] for offset in range(length - len(own))]
        return begin + own + rest
