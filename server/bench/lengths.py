"""How long prompts and answers are: a number, or a distribution that is drawn from.

Owns the notation. Knows nothing of requests.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from server.errors import ServerError

NOTATION = "a number, uniform:LOW:HIGH, normal:MEAN:DEVIATION or lognormal:MEDIAN:SIGMA"
_KINDS = ("uniform", "normal", "lognormal")
_LONGEST = 1 << 20


class LengthError(ServerError):
    """A text that is no distribution of lengths."""

    code = "length"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution over positive integers; draws outside of it are drawn to its nearest end."""

    kind: str
    first: float
    second: float = 0.0
    most: int = _LONGEST

    def draw(self, rng: random.Random) -> int:
        """One length, at least 1."""
        match self.kind:
            case "uniform":
                value = float(rng.randint(int(self.first), int(self.second)))
            case "normal":
                value = rng.gauss(self.first, self.second)
            case "lognormal":
                value = rng.lognormvariate(math.log(self.first), self.second)
            case _:
                value = self.first
        return max(1, min(round(value), self.most))

    def __str__(self) -> str:
        """As it is written."""
        if self.kind == "fixed":
            return f"{self.first:g}"
        return f"{self.kind}:{self.first:g}:{self.second:g}"


def parse_lengths(text: str, option: str) -> Lengths:
    """Read a distribution.

    Raises:
        LengthError: It is none; the sentence names the option.
    """
    kind, *numbers = text.split(":")
    known = kind in _KINDS and len(numbers) == 2
    try:
        if known:
            lengths = Lengths(kind, float(numbers[0]), float(numbers[1]))
        else:
            lengths = Lengths("fixed", float(int(text)))
    except ValueError:
        raise _wrong(text, option) from None
    is_ordered = kind != "uniform" or lengths.first <= lengths.second
    if not 1 <= lengths.first <= _LONGEST or not 0 <= lengths.second <= _LONGEST or not is_ordered:
        raise _wrong(text, option)
    return lengths


def _wrong(text: str, option: str) -> LengthError:
    return LengthError(
        f"{option}: {text!r} is no distribution of lengths.",
        remedy=f"Use {NOTATION}; lengths are from 1 to {_LONGEST}.",
    )
