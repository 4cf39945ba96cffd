"""How a search tells a terminal how far it is; the log has a line per trial everywhere.

Watches. Knows nothing of what moves it.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import structlog

from artifacts.protocol import BuildEvent, Progress, StageBegun
from server.search.chains import words
from server.search.objectives import Objective
from server.search.search import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_log = structlog.get_logger(__name__)

_LONGEST = 60


class Display:
    """One bar on standard error."""

    def __init__(
        self, objectives: Sequence[Objective], clock: Callable[[], float] = time.monotonic
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._objectives = objectives
        self._clock = clock
        self._phase, self._phase_s = "", 0.0
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[doing]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("search", total=1, left="", doing="")
        self._doing = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def status(self, status: Status) -> None:
        """Show how far the trials are."""
        self._doing = status.doing
        left = "" if status.left_s is None else f"{duration(status.left_s)} left"
        self._progress.update(
            self._task,
            description="trials",
            completed=status.done,
            total=status.wanted,
            left=left,
            doing=status.doing[:_LONGEST],
        )
        if (record := status.last) is not None:
            figures = {
                one.measure: one.show(record.result.measures) or None for one in self._objectives
            }
            _log.info(
                "trial",
                number=record.number,
                done=f"{status.done}/{status.wanted}",
                ended=record.result.kind.value,
                chain=words(record.value or ()),
                **figures,
                reason=record.result.reason or None,
                seconds=round(record.seconds, 1),
                left=left.removesuffix(" left") or None,
            )

    def event(self, event: BuildEvent | str) -> None:
        """Show what the trial does now."""
        match event:
            case str():
                act = event
            case StageBegun():
                act = f"{event.stage}{' (reused)' if event.reused else ''}"
            case Progress():
                act = f"{event.stage} {event.fraction:.0%}"
            case _:
                return
        self._progress.update(self._task, doing=f"{self._doing} | {act}"[: 2 * _LONGEST])

    def phase(self, description: str, done: int, total: int, doing: str) -> None:
        """Show how far something else than the trials is."""
        self._doing = doing
        if self._phase != description:
            self._phase, self._phase_s = description, self._clock()
        left = ""
        if done:
            left = f"{duration((self._clock() - self._phase_s) / done * (total - done))} left"
        self._progress.update(
            self._task,
            description=description,
            completed=done,
            total=total,
            left=left,
            doing=doing,
        )


def duration(seconds: float) -> str:
    """Roughly how long."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
