"""How far a run of the load generator is, on a terminal.

Knows nothing of what is sent.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from server.bench.arrivals import Plan
from server.bench.attempt import Attempt


class Progress:
    """A bar on standard error; nothing where that is no terminal."""

    def __init__(self, plan: Plan) -> None:
        console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._plan = plan
        self._begun_s = time.monotonic()
        self._ended = 0
        total = plan.requests if plan.seconds is None else plan.seconds
        self._task = self._bars.add_task("0 requests", total=total)

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

    def ended(self, _: Attempt) -> None:
        """A request ended."""
        self._ended += 1
        by_time = self._plan.seconds is not None
        done = time.monotonic() - self._begun_s if by_time else self._ended
        self._bars.update(self._task, completed=done, description=f"{self._ended} requests")
