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


class Announcer:
    """A watcher of variants.

    Args:
        telemetry: Is told of durations, budgets, figures and traffic.
        variants: All of them, since shares are of a whole.
        started_s: When the process began, on the clock.
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
        self._started_s = started_s
        self._clock = clock
        self._states: dict[str, VariantState] = {}
        self._weights: dict[str, float] = {}

    def __call__(self, view: VariantView) -> None:
        """Hear of a change."""
        if view.budget is not None:
            self._telemetry.judged(view.name, view.budget)
        if self._weights.get(view.name) != view.weight:
            self._weights[view.name] = view.weight
            self._telemetry.directed(traffic_shares(self._variants))
        if self._states.get(view.name) is view.state:
            return
        self._states[view.name] = view.state
        if view.state is VariantState.READY:
            self._ready(view)
        elif view.state is VariantState.FAILED:
            _log.error("variant failed", variant=view.name, error=view.error)

    def _ready(self, view: VariantView) -> None:
        self._telemetry.took("ready", self._clock() - self._started_s, view.name)
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
