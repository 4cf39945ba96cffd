"""The search proper: hand-written variants first, then trial after trial.

Owns what a trial does from the draw to its ending, what counts as the same chain, and when to stop.
Knows nothing of the terminal, of files or of signals; it is cancelled like any task, and then puts
its trial back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import structlog

from artifacts.digest import sha256_json
from artifacts.protocol import PlannedVariant
from server.search.chains import words
from server.search.evaluation import Evaluator
from server.search.records import COUNTED, Kind, Known, Record, Result
from server.search.spaces import Drawn, Space
from server.search.storage import StudyError
from server.search.study import Study, Ticket, Turn
from server.search.values import label_of

_log = structlog.get_logger(__name__)

_FREE_IN_A_ROW = 40  # draws that gave nothing new: there is nothing new, or hardly
_DULL = 3  # of these, after which chance draws instead of the sampler
_FAILURES_IN_A_ROW = 8
_BEAT_S = 30.0
_WAIT_S = 2.0


class Ending(Enum):
    """Why a search ended."""

    DONE = "all trials are finished"
    EXHAUSTED = "nothing new is left to try"
    OUT_OF_TIME = "its time is up"
    FAILING = "one trial after the other failed"
    STOPPED = "it was stopped"


@dataclass(frozen=True, slots=True)
class Status:
    """How far a search is.

    Attributes:
        done: Finished trials that count.
        wanted: How many there are to be.
        left_s: Seconds that the rest will take, going by those so far; None while nothing is known.
        doing: What is done now.
        last: How the last trial ended, once it did.
    """

    done: int
    wanted: int
    left_s: float | None
    doing: str
    last: Record | None = None


class Search:
    """Runs trials.

    Args:
        space: What is open.
        study: Where trials are kept.
        evaluator: Takes a chain to its figures.
        wanted: How many trials are to count, over all processes and starts.
        deadline_s: When to begin no other, in ``clock``'s seconds.
        watch: Told of every step.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        space: Space,
        study: Study,
        evaluator: Evaluator,
        *,
        wanted: int,
        deadline_s: float | None = None,
        watch: Callable[[Status], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._space = space
        self._study = study
        self._evaluator = evaluator
        self._wanted = wanted
        self._deadline_s = deadline_s
        self._watch = watch
        self._clock = clock
        self._own_s: list[float] = []

    async def run(self) -> Ending:
        """Run trials until there are as many as wanted.

        Raises:
            ServerError: Something is wrong that no other trial would mend.
            ArtifactError: The store cannot be used.
        """
        free = failures = 0
        while True:
            if self._deadline_s is not None and self._clock() >= self._deadline_s:
                return Ending.OUT_OF_TIME
            if free >= _FREE_IN_A_ROW or self._tried() >= self._space.size():
                return Ending.EXHAUSTED
            if failures >= _FAILURES_IN_A_ROW:
                return Ending.FAILING
            ticket = self._study.begin(self._wanted, by_chance=free >= _DULL)
            if ticket is Turn.DONE:
                return Ending.DONE
            if ticket is Turn.WAIT:
                self.tell("waiting for other processes' trials")
                await asyncio.sleep(_WAIT_S)
                continue
            kind = await self._trial(ticket)
            free = 0 if kind in COUNTED else free + 1
            failures = failures + 1 if kind is Kind.FAILED else 0 if kind in COUNTED else failures

    def tell(self, doing: str, last: Record | None = None) -> None:
        """Tell the watcher what is done now."""
        done = min(self._study.counted(), self._wanted)
        left_s = None
        if self._own_s:
            left_s = sum(self._own_s) / len(self._own_s) * (self._wanted - done)
        self._watch(Status(done, self._wanted, left_s, doing, last))

    async def _trial(self, ticket: Ticket) -> Kind:
        begun_s = self._clock()
        try:
            drawn = self._space.draw(ticket.trial)
            self._study.drew(ticket, drawn.variant, list(drawn.chain))
            self.tell(f"trial {ticket.trial.number}: {words(drawn.chain)}")
            async with self._beating(ticket):
                result = await self._result(drawn)
        except BaseException:  # also when it is cancelled: somebody else may take it up
            self._study.give_back(ticket)
            raise
        if not self._study.finish(ticket, result):
            _log.warning("another process took the trial over", number=ticket.trial.number)
            return Kind.ABANDONED
        if result.kind in COUNTED:
            self._own_s.append(self._clock() - begun_s)
            self.tell("", self._study.record(ticket.trial.number))
        return result.kind

    async def _result(self, drawn: Drawn) -> Result:
        before = [record for record in self._study.records() if _is_settled(record)]
        key = label_of(drawn.chain)
        if any(
            record.variant == drawn.variant and label_of(record.value) == key for record in before
        ):
            return Result(Kind.REPEATED, reason="The same chain was tried before.")
        planned = await self._evaluator.plan(drawn.variant, drawn.chain)
        if isinstance(planned, Result):
            return planned
        budget = self._evaluator.budget(drawn.variant)
        for record in before:
            is_alike = self._evaluator.budget(record.variant) == budget
            if record.result.recipe == planned.recipe and is_alike:
                return Result(
                    Kind.REPEATED, planned.recipe, reason=f"The same as trial {record.number}."
                )
        known = self._study.known(planned.recipe).values()
        speeds = next((one.measures for one in known if one.kind is not Kind.FAILED), None)
        return await self._evaluator.judge(drawn.variant, drawn.chain, planned, speeds=speeds)

    @contextlib.asynccontextmanager
    async def _beating(self, ticket: Ticket) -> AsyncIterator[None]:
        async def beat() -> None:
            while True:
                await asyncio.sleep(_BEAT_S)
                with contextlib.suppress(StudyError):  # told when the trial ends, if it lasts
                    self._study.beat(ticket)

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()

    def _tried(self) -> int:
        """How many different points are settled."""
        return len(
            {
                label_of([record.variant, record.value])
                for record in self._study.records()
                if _is_settled(record) or record.result.kind is Kind.REPEATED
            }
        )


async def measure_known(
    evaluator: Evaluator,
    study: Study,
    chains: Mapping[str, Any],
    planned: Mapping[str, PlannedVariant],
    doing: Callable[[str], None],
) -> AsyncIterator[Known]:
    """Measure the hand-written variants, but those whose figures the study holds already.

    Raises:
        ServerError: Something is wrong that is not a variant's.
        ArtifactError: The store cannot be used.
    """
    for name, variant in planned.items():
        budget = sha256_json(evaluator.budget(name).limits)
        result = study.known(variant.recipe).get(budget)
        if result is None or result.kind is Kind.FAILED:
            doing(f"variant {name}")
            result = await evaluator.judge(name, chains[name], variant, time_all=True)
            study.keep_known(result, budget)
        yield Known(name, chains[name], result)


def _is_settled(record: Record) -> bool:
    return record.result.kind in COUNTED | {Kind.REFUSED, Kind.KNOWN}
