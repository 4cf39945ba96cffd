"""How fast a variant is and what memory it takes, from a real server that serves it alone.

Owns how much is asked of it, which is the same in length for every measurement. Knows nothing of
trials. The figures are those of ``server.comparison.speed``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from server.config.fields import Config
from server.search.objectives import Measures

if TYPE_CHECKING:
    from server.comparison.prompts import Prompts
    from server.comparison.speed import SpeedSettings


class Prober(Protocol):
    """Measures one variant; a test may answer in its place."""

    async def __call__(self, config: Config, variant: str, *, round_: int | None) -> Measures:
        """Measure a variant of a config whose artifact is in the store.

        Args:
            config: Holds the variant.
            variant: Its name.
            round_: Of measuring in turns; None for the short look that a trial gets.

        Raises:
            ServerError: It cannot be served.
        """
        ...


class ServerProber:
    """Starts a server per measurement."""

    def __init__(self) -> None:
        self._prompts: Prompts | None = None

    async def __call__(self, config: Config, variant: str, *, round_: int | None) -> Measures:
        """See ``Prober``."""
        from server.comparison.prompts import read_prompts
        from server.comparison.server_run import running
        from server.comparison.speed import measure
        from server.comparison.streams import connected

        async with running(config, variant) as run, connected(run.target) as client:
            if self._prompts is None:  # the same for all; a model may have to write them itself
                self._prompts = await read_prompts(config, client)
            speed = await measure(
                run, client, self._prompts, _settings(is_trial=round_ is None), round_=round_ or 0
            )
        return {
            "decode_1": speed.decode_1,
            "decode_8": speed.decode_8,
            "prefill": speed.prefill,
            "resident_bytes": float(speed.resident_bytes),
            "others_cores": speed.others_cores,
        }


def _settings(*, is_trial: bool) -> SpeedSettings:
    from server.comparison.speed import SpeedSettings

    seconds, quiet_s = (1.0, 0.0) if is_trial else (2.0, 5.0)
    return SpeedSettings(
        prompt_tokens=32, new_tokens=64, long_prompt_tokens=256, seconds=seconds, quiet_s=quiet_s
    )
