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
_LARGEST_SIGMA = 10.0  # beyond it nearly every draw is one of the ends


class LengthError(ServerError):
    """A text that is no distribution of lengths."""

    code = "length"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution over positive integers; draws outside of it are drawn to its nearest end."""

    kind: str
    first: float
    second: float = 0.0

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
        return max(1, min(round(value), _LONGEST))

    def __str__(self) -> str:
        """As it is written."""
        if self.kind == "fixed":
            return _number(self.first)
        return f"{self.kind}:{_number(self.first)}:{_number(self.second)}"


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
            kind, lengths = "fixed", Lengths("fixed", float(int(text)))
    except ValueError:
        raise _wrong(text, option) from None
    if not (1 <= lengths.first <= _LONGEST and 0 <= lengths.second <= _most_second(kind)):
        raise _wrong(text, option)
    if kind == "uniform" and not _is_range(lengths):
        raise _wrong(text, option)
    return lengths


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _most_second(kind: str) -> float:
    return _LARGEST_SIGMA if kind == "lognormal" else _LONGEST


def _is_range(lengths: Lengths) -> bool:
    whole = lengths.first.is_integer() and lengths.second.is_integer()
    return whole and lengths.first <= lengths.second


def _wrong(text: str, option: str) -> LengthError:
    return LengthError(
        f"{option}: {text!r} is no distribution of lengths.",
        remedy=f"Use {NOTATION}; lengths are from 1 to {_LONGEST}.",
    )
