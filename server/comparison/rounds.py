"""Rounds of a comparison: every variant has its turn in each, one server at a time.

Owns the order, the texts that are compared, and what is kept when one variant fails or everything
is interrupted. Knows nothing of how figures are taken, or of what they say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from artifacts.errors import ArtifactError
from server.comparison.divergence import (
    Divergence,
    DivergenceSettings,
    Texts,
    compare_texts,
    greedy_texts,
)
from server.comparison.order import order
from server.comparison.prompts import Prompts, read_prompts
from server.comparison.server_run import running
from server.comparison.speed import Speed, SpeedSettings, measure
from server.comparison.streams import connected
from server.config.fields import Config
from server.errors import ServerError


@dataclass(frozen=True, slots=True)
class RoundsSettings:
    """How much is measured."""

    rounds: int
    speed: SpeedSettings
    divergence: DivergenceSettings


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
    config: Config,
    variants: Sequence[str],
    settings: RoundsSettings,
    begun: Callable[[str, int, int], None],
) -> Taken:
    """Measure variants whose artifacts are in the store.

    Args:
        config: What the variants are of.
        variants: Their names, the baseline first.
        settings: How much is measured.
        begun: Told of each turn: the variant, the turn's number from 0, and how many there are.

    Returns:
        What was taken until the end, or until the task was cancelled.
    """
    rounds = _Rounds(config, variants, settings)
    count = settings.rounds * len(variants)
    try:
        for number in range(count):
            round_, place = divmod(number, len(variants))
            # The first round has the given order: the baseline's text is what others leave.
            name = variants[order(len(variants), round_)[place]]
            if name not in rounds.taken.failures:
                begun(name, number, count)
                await rounds.turn(name, round_)
        rounds.taken.complete = True
    except asyncio.CancelledError:
        pass  # whoever asked for the end wants what there is
    return rounds.taken


class _Rounds:
    """What turns share."""

    def __init__(self, config: Config, variants: Sequence[str], settings: RoundsSettings) -> None:
        self._config = config
        self._settings = settings
        self._baseline = variants[0]
        self._prompts: Prompts | None = None
        self._texts: Texts | None = None
        self.taken = Taken({name: {} for name in variants})

    async def turn(self, name: str, round_: int) -> None:
        """Measure one variant in one round; a failure is noted and ends its part."""
        settings, taken = self._settings, self.taken
        try:
            async with running(self._config, name) as run, connected(run.target) as client:
                if self._prompts is None:
                    self._prompts = await read_prompts(self._config, client)
                speed = await measure(run, client, self._prompts, settings.speed, round_=round_)
                if round_ == 0:
                    texts = await greedy_texts(client, self._prompts, settings.divergence)
                    if name == self._baseline:
                        self._texts = texts
                    elif self._texts is not None:
                        divergence = compare_texts(texts, self._texts, settings.divergence)
                        taken.divergence[name] = divergence
                taken.speeds[name][round_] = speed
        except (ServerError, ArtifactError, OSError) as error:
            taken.failures[name] = str(error)
