"""Progress bars of builds on a terminal; the log says the same everywhere else.

Watches variants' views. Knows nothing of who changes them.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from server.catalog import VariantState, VariantView

if TYPE_CHECKING:
    from rich.progress import TaskID

_LONGEST = 40  # characters of what a stage says it does; the bar keeps its line


class ProgressBars:
    """One bar per variant that is being built, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._live = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def show(self, view: VariantView) -> None:
        """Draw a variant's new view."""
        if view.state is not VariantState.BUILDING or view.progress is None:
            task = self._tasks.pop(view.name, None)
            if task is not None:
                self._progress.remove_task(task)
            if not self._tasks:
                self._stop()
            return
        if not self._live:
            self._progress.start()
            self._live = True
        progress = view.progress
        if view.name not in self._tasks:
            self._tasks[view.name] = self._progress.add_task(view.name, total=1.0, doing="")
        done = progress.stage_index + progress.fraction
        self._progress.update(
            self._tasks[view.name],
            completed=done / max(progress.stage_count, 1),
            doing=f"{progress.stage} {progress.message}".strip()[:_LONGEST],
        )

    def _stop(self) -> None:
        if self._live:
            self._progress.stop()
            self._live = False
