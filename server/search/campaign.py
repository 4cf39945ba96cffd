"""A search from beginning to end: hand-written variants, trials, the front again, the verdict.

Owns the order and what being stopped means in each part: what is measured is kept and told. Knows
nothing of signals, of the terminal or of files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog

from artifacts.protocol import BuildEvent
from server.errors import OptimizerError
from server.optimizer import Optimizer
from server.search import recipes
from server.search.evaluation import Evaluator
from server.search.finals import Contender, Verdict, contenders, measured_in_turns, verdict
from server.search.objectives import Measures, chosen
from server.search.preparation import Prepared, built_in_space
from server.search.probing import Prober
from server.search.records import Kind, Known, Record
from server.search.search import Ending, Search, Status, measure_known
from server.search.spaces import Space
from server.search.study import Study

_log = structlog.get_logger(__name__)

_Got = TypeVar("_Got")


class Watcher(Protocol):
    """Who is told how far a campaign is."""

    def status(self, status: Status) -> None:
        """Of the trials."""
        ...

    def event(self, event: BuildEvent | str) -> None:
        """Of the running build."""
        ...

    def phase(self, description: str, done: int, total: int, doing: str) -> None:
        """Of everything else."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a campaign leaves.

    Attributes:
        ending: Why the trials ended.
        records: All of the study's trials.
        verdict: None when it was stopped before there was anything to compare.
    """

    ending: Ending
    records: tuple[Record, ...]
    verdict: Verdict | None


class Campaign:
    """Runs once.

    Args:
        prepared: What is searched.
        study: Where trials are kept.
        optimizer: Builds.
        prober: Times.
        watcher: Is told.
        threads: Of a build.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        prepared: Prepared,
        study: Study,
        optimizer: Optimizer,
        prober: Prober,
        watcher: Watcher,
        *,
        threads: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prepared = prepared
        self._config = prepared.planned.config
        self._settings = self._config.search
        self._objectives = chosen(self._settings.objectives)
        self._study = study
        self._optimizer = optimizer
        self._watcher = watcher
        self._clock = clock
        self._evaluator = Evaluator(
            prepared.planned, optimizer, prober, threads=threads, observe=watcher.event
        )
        self._known: list[Known] = []
        self._running: asyncio.Task[Any] | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Stop what is going on, and come to the verdict with what there is."""
        self._is_stopped = True
        if self._running is not None:
            self._running.cancel()

    async def run(self) -> Outcome:
        """Search.

        Raises:
            ServerError: Something is wrong that no trial would mend.
            ArtifactError: The store cannot be used.
        """
        minutes = self._settings.minutes
        deadline_s = None if minutes is None else self._clock() + 60 * minutes
        ending = await self._until_stopped(self._search(deadline_s)) or Ending.STOPPED
        records = self._study.records()
        entries = contenders(self._known, records, self._objectives, most=self._settings.finalists)
        timed = await self._until_stopped(self._again(entries)) if entries else None
        entries = entries if timed is None else timed
        return Outcome(
            Ending.STOPPED if self._is_stopped else ending,
            tuple(records),
            verdict(entries, self._objectives) if entries else None,
        )

    async def _search(self, deadline_s: float | None) -> Ending:
        await self._measure_known()
        space = await self._space()
        layers = self._layers()
        wanted = [(f"like {one.name}", one.value) for one in self._known]
        wanted += recipes.known_good(layers)
        self._study.plant(
            [(origin, params) for origin, chain in wanted for params in space.nearest(chain)]
        )
        search = Search(
            space,
            self._study,
            self._evaluator,
            wanted=self._settings.trials,
            deadline_s=deadline_s,
            watch=self._watcher.status,
            clock=self._clock,
        )
        search.tell("")
        return await search.run()

    async def _measure_known(self) -> None:
        planned = self._prepared.planned.response.variants
        chains = self._prepared.chains
        async for known in measure_known(
            self._evaluator,
            self._study,
            chains,
            planned,
            lambda doing: self._watcher.phase("hand-written", len(self._known), len(chains), doing),
        ):
            self._known.append(known)
            if known.result.kind is Kind.FAILED:
                _log.warning("left out", variant=known.name, reason=known.result.reason)

    async def _space(self) -> Space:
        if self._prepared.space is not None:
            return self._prepared.space
        return await built_in_space(self._config, self._layers(), self._optimizer)

    async def _again(self, entries: list[Contender]) -> list[Contender]:
        async def timed(one: Contender, round_: int) -> Measures:
            return await self._evaluator.time(one.variant, one.chain, round_)

        here = []
        for index, one in enumerate(entries):
            self._watcher.phase("building", index, len(entries), one.name)
            try:  # another machine may have found it
                await self._evaluator.bring(one.variant, one.chain)
            except OptimizerError as error:
                _log.warning("left out of the report", variant=one.name, error=str(error))
            else:
                here.append(one)
        rounds = self._settings.rounds
        total = rounds * len(here)
        return await measured_in_turns(
            here,
            timed,
            rounds=rounds,
            doing=lambda done, doing: self._watcher.phase("in turns", done, total, doing),
        )

    def _layers(self) -> int | None:
        """Of the original model, as far as a hand-written variant tells."""
        counts = [one.result.measures.get("layers") for one in self._known]
        return max((int(count) for count in counts if count), default=None)

    async def _until_stopped(self, work: Coroutine[Any, Any, _Got]) -> _Got | None:
        """The result of a part; None when it was stopped."""
        if self._is_stopped:
            work.close()
            return None
        running = asyncio.create_task(work)
        self._running = running
        this = asyncio.current_task()
        try:
            return await running
        except asyncio.CancelledError:
            if not self._is_stopped or (this is not None and this.cancelling()):
                raise  # somebody wants all of it to end
            return None
        finally:
            self._running = None
