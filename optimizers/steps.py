"""The steps of one build, one after another: told when they begin, kept when they end.

Owns the counting, the events about a step and the lineage that grows with them. Knows nothing of
what a step does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from artifacts.manifest import Quality, StageRecord
from artifacts.protocol import StageBegun, StageMeasured
from optimizers.events import Events
from optimizers.results import Made, Result, Results
from optimizers.stage import Report


class Steps:
    """Where a build is."""

    def __init__(self, results: Results, events: Events, names: Sequence[str]) -> None:
        self._results = results
        self._events = events
        self._names = names
        self._begun = 0
        self.lineage: list[StageRecord] = []

    def begin(self, *, reused: bool) -> Report:
        """Tell that the next step begins; gives what hears of its progress."""
        name, index = self._names[self._begun], self._begun
        self._begun += 1
        self._events.send(
            StageBegun(stage=name, index=index, count=len(self._names), reused=reused)
        )
        return self.report

    @property
    def is_last(self) -> bool:
        """Whether nothing is left but to publish what the step that began last made."""
        return self._begun == len(self._names) - 1

    def report(self, fraction: float, message: str) -> None:
        """Tell how far the step is that began last."""
        self._events.progress(self._names[self._begun - 1], fraction, message)

    def run(self, key: str, work: Callable[[Path, Report], Made], *, keep: bool = True) -> Result:
        """Begin the next step and give its result, made now or found under ``key``."""
        found = self._results.find(key) if keep else None
        report = self.begin(reused=found is not None)
        if found is not None:
            return found
        return self._results.make(key, lambda target: work(target, report), keep=keep)

    def again(self) -> None:
        """The step that began last is to begin anew, since it went about its work the wrong way."""
        self._begun -= 1

    def measured(self, record: StageRecord, quality: Quality | None) -> None:
        """Add the step that began last to the lineage."""
        record = record.model_copy(update={"quality": quality})
        self.lineage.append(record)
        self._events.send(StageMeasured(record=record))
