"""How far a run of the load generator is, on a terminal.

Moves by itself, so that a server that answers nobody is seen as such. Knows nothing of what is
sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from server.bench.arrivals import Plan
from server.bench.attempt import OK, Attempt
from server.bench.run import Run


class Progress:
    """A bar on standard error; nothing where that is no terminal."""

    def __init__(self, plan: Plan, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._plan = plan
        self._run: Run | None = None
        self._begun_s = 0.0
        self._ended = 0
        self._answered = 0
        self._bars = _LiveBars(self._update, console)
        self._task = self._bars.add_task("warming up", total=1.0)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def begin(self, run: Run) -> None:
        """The warm-up is over."""
        self._run = run
        self._begun_s = time.monotonic()

    def ended(self, one: Attempt) -> None:
        """A request ended."""
        self._ended += 1
        self._answered += one.status == OK

    @property
    def share(self) -> float:
        """How far it is, 0 to 1, by what ends it first."""
        plan = self._plan
        elapsed_s = time.monotonic() - self._begun_s
        by_time = elapsed_s / plan.seconds if plan.seconds is not None else 0.0
        by_count = self._ended / plan.requests if plan.requests is not None else 0.0
        return min(max(by_time, by_count), 1.0)

    @property
    def said(self) -> str:
        """What stands beside the bar."""
        sent = 0 if self._run is None else self._run.sent
        other = self._ended - self._answered
        told = f"{sent} sent, {self._answered} answered, {sent - self._ended} in flight"
        return f"{told}, {other} otherwise" if other else told

    def _update(self) -> None:
        if self._run is not None:
            self._bars.update(self._task, completed=self.share, description=self.said)


class _LiveBars(Bars):
    """Looks at the state whenever it draws, several times a second in a thread of its own."""

    def __init__(self, look: Callable[[], None], console: Console) -> None:
        self._look = look
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        self._look()
        return super().get_renderables()
