"""Tells the log and the metrics of every variant that is in another state than before.

Owns what is said of which state. Knows nothing of what a change means to the server.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from server.catalog import VariantState, VariantView
from server.telemetry import Telemetry
from server.variants import Variants, traffic_shares

_log = structlog.get_logger(__name__)

_GONE = frozenset({VariantState.FAILED, VariantState.UNLOADED})


class Announcer:
    """A watcher of variants.

    Args:
        telemetry: Is told of durations, budgets, figures and traffic.
        variants: All of them, since shares are of a whole.
        started_s: When the process began, on the clock; variants that are loaded later count from
            then on.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        variants: Variants,
        *,
        started_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._telemetry = telemetry
        self._variants = variants
        # Of those that are loaded later: when that began.
        self._begun_s = dict.fromkeys(variants.names(), started_s)
        self._clock = clock
        self._states: dict[str, VariantState] = {}
        self._weights: dict[str, float] = {}

    def __call__(self, view: VariantView) -> None:
        """Hear of a change."""
        self._telemetry.judged(view.name, view.budget)
        if self._weights.get(view.name) != view.weight:
            self._weights[view.name] = view.weight
            self._telemetry.directed(traffic_shares(self._variants))
        before = self._states.get(view.name)
        if before is view.state:
            return
        self._states[view.name] = view.state
        if view.state is VariantState.PENDING and (
            before in _GONE or view.name not in self._begun_s
        ):
            self._begun_s[view.name] = self._clock()
        if view.state is VariantState.READY:
            self._ready(view)
        elif view.state is VariantState.UNLOADED:
            _log.info("unloading variant", variant=view.name)
        elif view.state is VariantState.FAILED:
            _log.error("variant failed", variant=view.name, error=view.error)

    def _ready(self, view: VariantView) -> None:
        self._telemetry.took("ready", self._clock() - self._begun_s[view.name], view.name)
        if view.figures is not None:
            self._telemetry.measured(view.name, view.figures)
        limits = view.limits
        _log.info(
            "variant ready",
            variant=view.name,
            artifact=(view.artifact or "")[:12],
            kv_tokens=limits and limits.kv_budget_tokens,
            budget=view.budget and view.budget.state.value,
        )
