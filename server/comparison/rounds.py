"""Rounds of a comparison: every variant has its turn in each, one server at a time.

Owns the order, and what is kept when one variant fails or everything is interrupted. Knows nothing
of how a turn is taken (``turn``), or of what figures say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from artifacts.errors import ArtifactError
from server.comparison.divergence import Divergence, Texts, compare_texts
from server.comparison.order import order
from server.comparison.speed import Speed
from server.comparison.turn import Turn
from server.errors import ServerError


@dataclass(slots=True)
class Taken:
    """What rounds have brought so far.

    Attributes:
        speeds: Of each variant, by round.
        divergence: Of each variant but the baseline.
        failures: Why a variant has no (further) figures.
        complete: Whether all rounds were run.
    """

    speeds: dict[str, dict[int, Speed]]
    divergence: dict[str, Divergence] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    complete: bool = False


async def take_rounds(
    variants: Sequence[str],
    rounds: int,
    take: Callable[[str, int], Awaitable[Turn]],
    begun: Callable[[str, int, int], None],
) -> Taken:
    """Let every variant have its turn in every round.

    Args:
        variants: Their names, the baseline first.
        rounds: How many.
        take: Takes the turn of a variant in a round.
        begun: Told of each turn: the variant, the turn's number from 0, and how many there are.

    Returns:
        What was taken until the end, or until the task was cancelled.
    """
    taken = Taken({name: {} for name in variants})
    baseline: Texts | None = None
    count = rounds * len(variants)
    try:
        for number in range(count):
            round_, place = divmod(number, len(variants))
            # The first round has the given order: the baseline's texts are what others leave.
            name = variants[order(len(variants), round_)[place]]
            if name in taken.failures:
                continue
            begun(name, number, count)
            try:
                turn = await take(name, round_)
            except (ServerError, ArtifactError, OSError) as error:
                taken.failures[name] = str(error)
                continue
            taken.speeds[name][round_] = turn.speed
            if turn.texts is None:
                continue
            if name == variants[0]:
                baseline = turn.texts
            elif baseline is not None:
                taken.divergence[name] = compare_texts(turn.texts, baseline)
        taken.complete = True
    except asyncio.CancelledError:
        pass  # whoever asked for the end wants what there is
    return taken
