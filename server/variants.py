"""The configured variants and what is known about each: the API side's ``Catalog``.

Owns the views, changes them, and tells watchers. Lives on the event loop. Knows nothing of how a
variant gets from one state to the next (``server.lifecycle``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from artifacts.errors import BugError
from server.catalog import BuildProgress, VariantState, VariantView

Watcher = Callable[[VariantView], None]

_SETTLED = frozenset({VariantState.READY, VariantState.FAILED})


class Variants:
    """Implements ``Catalog``.

    Args:
        names: In the order of the config; the first is the default.
        traffic: Weight by name; empty when it is not configured.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        names: Sequence[str],
        traffic: Mapping[str, float],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._views = {
            name: VariantView(name, VariantState.PENDING, weight=traffic.get(name, 0.0))
            for name in names
        }
        self._traffic = dict(traffic)
        self._clock = clock
        self._building_since: dict[str, float] = {}
        self._watchers: list[Watcher] = []

    @property
    def default(self) -> str:
        """Name of the first variant of the config."""
        return next(iter(self._views))

    @property
    def traffic(self) -> Mapping[str, float]:
        """Weight of each variant that ``traffic`` names."""
        return self._traffic

    def names(self) -> tuple[str, ...]:
        """All names, in the order of the config."""
        return tuple(self._views)

    def get(self, name: str) -> VariantView | None:
        """The variant as it is now, its build's clock running."""
        view = self._views.get(name)
        if view is None or view.progress is None or view.state is not VariantState.BUILDING:
            return view
        elapsed_s = self._clock() - self._building_since[name]
        return replace(view, progress=replace(view.progress, elapsed_s=elapsed_s))

    @property
    def views(self) -> tuple[VariantView, ...]:
        """All variants as they are now."""
        return tuple(self._views.values())

    @property
    def any_ready(self) -> bool:
        """Whether at least one variant serves."""
        return any(view.state is VariantState.READY for view in self.views)

    @property
    def settled(self) -> bool:
        """Whether every variant is ready or has failed."""
        return all(view.state in _SETTLED for view in self.views)

    def watch(self, watcher: Watcher) -> None:
        """Call ``watcher`` with the new view after each change."""
        self._watchers.append(watcher)

    def change(self, name: str, **changes: Any) -> VariantView:
        """Give a variant a new view."""
        if name not in self._views:
            raise BugError(f"There is no variant {name!r} to change.")
        view = replace(self._views[name], **changes)
        self._views[name] = view
        for watcher in self._watchers:
            watcher(view)
        return view

    def building(self, name: str) -> None:
        """The variant's build starts."""
        self._building_since[name] = self._clock()
        self.change(name, state=VariantState.BUILDING, progress=BuildProgress())

    def progressed(self, name: str, progress: BuildProgress) -> None:
        """The variant's build got further."""
        elapsed_s = self._clock() - self._building_since[name]
        self.change(name, progress=replace(progress, elapsed_s=elapsed_s))
