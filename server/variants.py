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
from server.traffic import Shadow, Traffic

Watcher = Callable[[VariantView], None]

_SETTLED = frozenset({VariantState.READY, VariantState.FAILED, VariantState.UNLOADED})
_LEAST_SHARE = 0.01  # of a variant that gets no routed traffic but may be named


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
        self._traffic = Traffic(dict(traffic))
        self._clock = clock
        self._building_since: dict[str, float] = {}
        self._watchers: list[Watcher] = []

    @property
    def default(self) -> str:
        """Name of the first variant of the config."""
        return next(iter(self._views))

    @property
    def traffic(self) -> Mapping[str, float]:
        """Weight of each variant that takes part in routed traffic."""
        return self._traffic.weights

    @property
    def takers(self) -> frozenset[str]:
        """Those that requests which name none go to."""
        return self._traffic.takers(self.default)

    @property
    def shadow(self) -> Shadow | None:
        """Who is judged on what others answer."""
        return self._traffic.shadow

    def add(self, name: str) -> None:
        """Begin to know a variant, behind all others."""
        if name in self._views:
            raise BugError(f"There is a variant {name!r} already.")
        self._views[name] = VariantView(name, VariantState.PENDING)

    def direct(self, traffic: Traffic) -> None:
        """Let routed traffic go elsewhere from now on."""
        self._traffic = traffic
        for name in self.names():
            self.change(name, weight=traffic.weights.get(name, 0.0))

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

    def unwatch(self, watcher: Watcher) -> None:
        """Call it no more."""
        self._watchers.remove(watcher)

    def change(self, name: str, **changes: Any) -> VariantView:
        """Give a variant a new view."""
        if name not in self._views:
            raise BugError(f"There is no variant {name!r} to change.")
        view = replace(self._views[name], **changes)
        self._views[name] = view
        for watcher in [*self._watchers]:
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


def traffic_shares(variants: Variants) -> dict[str, float]:
    """Of every variant, its share of the requests that name none."""
    weights = variants.traffic or {variants.default: 1.0}
    whole = sum(weights.values())
    return {name: weights.get(name, 0.0) / whole for name in variants.names()}


def engine_share(variants: Variants, name: str) -> float:
    """A variant's share of engine time relative to an equal one, by its part of the traffic."""
    traffic = variants.traffic
    if not traffic:
        return 1.0
    share = traffic.get(name, 0.0) / sum(traffic.values()) * len(variants.names())
    return max(share, _LEAST_SHARE)
