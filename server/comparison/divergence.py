"""Where greedy texts of a variant leave the baseline's.

Owns the prompts' number and length and what counts as leaving: the first token that differs, the
end of the text included. Knows nothing of rounds or of figures' intervals.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from protos import inference_pb2 as pb
from server.comparison.prompts import Prompts
from server.comparison.streams import Client, Stream

_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class DivergenceSettings:
    """How many texts of which length are compared."""

    prompts: int = 24
    prompt_tokens: int = 32
    new_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of one variant against the baseline.

    Attributes:
        first: Of each prompt, the index of the first generated token that differs; None when
            the texts are identical.
        new_tokens: Of the longest text.
    """

    first: tuple[int | None, ...]
    new_tokens: int

    @property
    def identical(self) -> tuple[float, ...]:
        """1 for each prompt whose texts are identical, else 0."""
        return tuple(float(index is None) for index in self.first)

    @property
    def median_first(self) -> float | None:
        """The median index, identical texts behind all others; None when it lies among those."""
        ordered = [self.new_tokens if index is None else index for index in self.first]
        middle = statistics.median(ordered) if ordered else self.new_tokens
        return middle if middle < self.new_tokens else None


Texts = tuple[tuple[int, ...], ...]


async def greedy_texts(client: Client, prompts: Prompts, settings: DivergenceSettings) -> Texts:
    """What a variant writes greedily, up to its own end of text."""
    limits = (await client.describe()).limits
    length = min(settings.prompt_tokens, limits.max_length // 2)
    tokens = min(settings.new_tokens, limits.max_length - length)
    beginnings = prompts.beginnings(settings.prompts, length)
    sampling = pb.SamplingParameters(temperature=0.0, max_tokens=tokens, seed=0)
    streams: list[Stream] = []
    for start in range(0, len(beginnings), _TOGETHER):
        streams += await client.generate_all(beginnings[start : start + _TOGETHER], sampling)
    return tuple(stream.tokens for stream in streams)


def compare_texts(ours: Texts, baseline: Texts) -> Divergence:
    """Compare texts of the same prompts."""
    longest = max(map(len, (*ours, *baseline)), default=0)
    pairs = zip(ours, baseline, strict=True)
    return Divergence(tuple(first_difference(*pair) for pair in pairs), longest)


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Index of the first token that differs; where one text ends and the other does not, too."""
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))
