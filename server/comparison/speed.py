"""One round of speed figures of one variant, taken from a running server over real gRPC.

Owns what is asked, in which order, and the definitions of the figures. Every figure is taken again
and again for some seconds, and its median counts. Knows nothing of rounds, of other variants or of
what the figures are good for.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from protos import inference_pb2 as pb
from server.comparison.load import Load
from server.comparison.prompts import Prompts, read_prompts
from server.comparison.scrape import scrape, total
from server.comparison.server_run import ServerRun, running
from server.comparison.streams import Client, Stream, connected, decode_rate, exactly
from server.config.fields import Config

_WARM_UP_TOKENS = 4
_FEWEST_TOKENS = 3  # with fewer, streams that begin together need not run together


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """What is asked for one round.

    Attributes:
        prompt_tokens: Of the prompts that decoding and the first token are measured with.
        new_tokens: Generated for each of them.
        long_prompt_tokens: Of the prompts that prefill is measured with.
        streams: At the same time, where not one.
        seconds: Spent on each figure.
        least: How often each figure is taken at least.
        most: How often at most.
        quiet_s: How long to wait for a quiet machine first.
    """

    prompt_tokens: int = 64
    new_tokens: int = 64
    long_prompt_tokens: int = 512
    streams: int = 8
    seconds: float = 3.0
    least: int = 2
    most: int = 200
    quiet_s: float = 20.0

    def within(self, limits: pb.Limits) -> SpeedSettings:
        """The same, as far as a variant can take it."""
        longest = limits.max_length
        each = min(longest, limits.kv_budget_tokens // self.streams or 1)
        new = max(min(self.new_tokens, each // 2), _FEWEST_TOKENS)
        return replace(
            self,
            new_tokens=new,
            prompt_tokens=max(min(self.prompt_tokens, each - new), 1),
            long_prompt_tokens=max(min(self.long_prompt_tokens, longest - 1), 1),
        )


QUICK = SpeedSettings(
    prompt_tokens=32, new_tokens=24, long_prompt_tokens=128, seconds=0.4, least=1, quiet_s=0.0
)
"""A few seconds for everything: enough to tell a factor of 1.5, not 1.1."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Figures of one variant from one round.

    Attributes:
        decode_1: Generated tokens per second of one stream, its prompt left out.
        decode_8: The same of all streams together (``SpeedSettings.streams``).
        prefill: Prompt tokens per second of one long prompt.
        first_token_s: Seconds to the first token of a prompt, one sample per request.
        inter_token_s: Seconds before each later token of one stream, one sample per token.
        engine_seconds_per_token: Engine time over generated tokens, with all streams.
        resident_bytes: Memory of the server's process at the end.
        peak_bytes: The most that it ever held.
        load_s: Seconds that opening and warming up the artifact took.
        start_s: Seconds from the start of the process until it served.
        others_cores: Cores that other processes used meanwhile, at worst.
    """

    decode_1: float
    decode_8: float
    prefill: float
    first_token_s: tuple[float, ...]
    inter_token_s: tuple[float, ...]
    engine_seconds_per_token: float
    resident_bytes: int
    peak_bytes: int
    load_s: float
    start_s: float
    others_cores: float


async def probe(
    config: Config,
    variant: str,
    *,
    settings: SpeedSettings | None = None,
    prompts: Prompts | None = None,
    round_: int = 0,
) -> Speed:
    """Start a server with one variant of a config, take a round of figures, and stop it.

    Args:
        config: Whose store should hold the variant's artifact: what is missing is built first.
        variant: Its name.
        settings: How much is asked; ``QUICK`` takes seconds.
        prompts: The same for all variants that are to be compared. None: read from the config's
            evaluation text.
        round_: Other prompts are drawn in every round.

    Raises:
        ServerProcessError: The server does not come up.
        StreamError: It does not answer as it should.
        TextError: The evaluation text cannot be read.
    """
    async with running(config, variant) as run, connected(run.target) as client:
        chosen = prompts or await read_prompts(config, client)
        return await measure(run, client, chosen, settings or SpeedSettings(), round_=round_)


async def measure(
    run: ServerRun, client: Client, prompts: Prompts, settings: SpeedSettings, *, round_: int
) -> Speed:
    """Take a round of figures from a server that runs."""
    limits = (await client.describe()).limits
    if settings.quiet_s > 0:
        await asyncio.to_thread(Load().wait_quiet, settings.quiet_s)
    return await _Round(run, client, prompts, settings.within(limits), round_).take()


class _Round:
    """The figures of one round, one after the other."""

    def __init__(
        self,
        run: ServerRun,
        client: Client,
        prompts: Prompts,
        settings: SpeedSettings,
        round_: int,
    ) -> None:
        self._run = run
        self._client = client
        self._prompts = prompts
        self._settings = settings
        self._round = round_
        self._others_cores = 0.0

    async def take(self) -> Speed:
        settings = self._settings
        many = settings.streams
        await self._ask("warm-up", many, settings.prompt_tokens, _WARM_UP_TOKENS)
        alone = await self._again(lambda number: self._decode("alone", number, 1))
        used_s, generated = self._engine()
        together = await self._again(lambda number: self._decode("together", number, many))
        used_after_s, generated_after = self._engine()
        firsts = await self._again(
            lambda number: self._ask(f"first {number}", 1, settings.prompt_tokens, 1)
        )
        long = settings.long_prompt_tokens
        prefills = await self._again(lambda number: self._ask(f"prefill {number}", 1, long, 1))
        return Speed(
            decode_1=statistics.median(decode_rate(streams) for streams in alone),
            decode_8=statistics.median(decode_rate(streams) for streams in together),
            prefill=statistics.median(long / streams[0].first_token_s for streams in prefills),
            first_token_s=tuple(streams[0].first_token_s for streams in firsts),
            inter_token_s=tuple(gap for (stream,) in alone for gap in stream.gaps_s),
            engine_seconds_per_token=(used_after_s - used_s) / (generated_after - generated),
            resident_bytes=self._run.resident_bytes(),
            peak_bytes=self._run.peak_bytes(),
            load_s=self._run.load_s,
            start_s=self._run.start_s,
            others_cores=self._others_cores,
        )

    async def _decode(self, purpose: str, number: int, count: int) -> tuple[Stream, ...]:
        settings = self._settings
        purpose = f"{purpose} {number}"
        return await self._ask(purpose, count, settings.prompt_tokens, settings.new_tokens)

    async def _ask(
        self, purpose: str, count: int, length: int, new_tokens: int
    ) -> tuple[Stream, ...]:
        prompts = self._prompts.draw(f"{purpose} {self._round}", count, length)
        return await self._client.generate_all(prompts, exactly(new_tokens))

    async def _again(
        self, ask: Callable[[int], Awaitable[tuple[Stream, ...]]]
    ) -> list[tuple[Stream, ...]]:
        """Ask for some seconds, and look at who else uses the machine meanwhile."""
        settings = self._settings
        begun_s = time.monotonic()
        others = Load().span(lambda: time.process_time() + self._run.cpu_s())
        answers: list[tuple[Stream, ...]] = []
        while len(answers) < settings.least or (
            len(answers) < settings.most and time.monotonic() - begun_s < settings.seconds
        ):
            answers.append(await ask(len(answers)))
        self._others_cores = max(self._others_cores, others())
        return answers

    def _engine(self) -> tuple[float, float]:
        """Engine seconds and generated tokens so far."""
        samples = scrape(self._run.metrics_url)
        variant = self._run.variant
        return (
            total(samples, "inference_engine_seconds_total", variant=variant),
            total(samples, "inference_generated_tokens_total", variant=variant),
        )
