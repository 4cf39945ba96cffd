"""One variant's turn in one round: its server is started, asked and stopped.

Owns the prompts, which are read once and then the same for all, and what belongs to a turn. Knows
nothing of the order of turns.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.comparison.divergence import DivergenceSettings, Texts, greedy_texts
from server.comparison.prompts import Prompts, read_prompts
from server.comparison.server_run import running
from server.comparison.speed import Speed, SpeedSettings, measure
from server.comparison.streams import connected
from server.config.fields import Config


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn brought.

    Attributes:
        speed: Figures.
        texts: Greedy texts, in the first round only: they are the same in each.
    """

    speed: Speed
    texts: Texts | None = None


class ServerTurns:
    """Takes turns with real servers.

    Args:
        config: Whose variants; its store holds their artifacts.
        speed: How much is asked.
        texts: Which greedy texts are compared.
    """

    def __init__(self, config: Config, speed: SpeedSettings, texts: DivergenceSettings) -> None:
        self._config = config
        self._speed = speed
        self._texts = texts
        self._prompts: Prompts | None = None

    async def take(self, variant: str, round_: int) -> Turn:
        """Take the turn of a variant in a round.

        Raises:
            ServerProcessError: Its server does not come up.
            StreamError: It does not answer as it should.
            TextError: The evaluation text cannot be read.
        """
        async with running(self._config, variant) as run, connected(run.target) as client:
            if self._prompts is None:
                self._prompts = await read_prompts(self._config, client)
            speed = await measure(run, client, self._prompts, self._speed, round_=round_)
            texts = None
            if round_ == 0:
                texts = await greedy_texts(client, self._prompts, self._texts)
            return Turn(speed, texts)
