"""From a chain to its figures, the cheap and telling first.

Planning takes half a second and refuses what cannot be built; building reuses every stage that the
store holds and measures quality; only what keeps to the budget is served and timed. Owns this
ladder and what each fall from it means. Knows nothing of studies or of where a chain comes from.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from artifacts.errors import ArtifactError
from artifacts.isa import isa_class
from artifacts.manifest import Quality
from artifacts.protocol import BuildEvent, PlannedVariant
from artifacts.store import Store
from server.budget import Budget
from server.config.budgets import budget_of
from server.config.fields import Config, VariantSection
from server.errors import OptimizerError, ServerError
from server.figures import doubt
from server.optimizer import Optimizer
from server.planning import Planned, judge_request, plan_request
from server.search.objectives import Measures
from server.search.probing import Prober
from server.search.records import Kind, Result

_log = structlog.get_logger(__name__)

TIMED = "probing"
"""What a trial does while its speed is taken, as ``observe`` is told."""

# Failures of a build that are not the chain's, and that every other chain would meet as well.
_OF_THE_MACHINE = frozenset({"store", "disk_full", "source", "recipe_changed", "text", "optimizer"})


class Evaluator:
    """Takes chains up the ladder.

    Args:
        planned: The config, its hand-written variants planned.
        optimizer: Judges and builds.
        prober: Times.
        threads: Of a build.
        observe: Told of a build's events, and of ``TIMED``.
    """

    def __init__(
        self,
        planned: Planned,
        optimizer: Optimizer,
        prober: Prober,
        *,
        threads: int,
        observe: Callable[[BuildEvent | str], None],
    ) -> None:
        self._planned = planned
        self._optimizer = optimizer
        self._prober = prober
        self._threads = threads
        self._observe = observe
        self._store = Store(planned.store)
        # A hub's branch may move while a search runs; all of it is about one revision.
        revision = planned.response.revision
        self._config = planned.config.model_copy(update={"revision": revision})

    def config_with(self, variant: str, chain: Sequence[Any]) -> Config:
        """The config with one settled chain in the place of a variant."""
        own = self._config.variants.get(variant, VariantSection())
        section = own.model_copy(update={"chain": list(chain)})
        return self._config.model_copy(update={"variants": {variant: section}, "traffic": {}})

    def budget(self, variant: str) -> Budget:
        """What a variant must keep to."""
        return budget_of(self.config_with(variant, ()), variant) or Budget()

    async def plan(self, variant: str, chain: Sequence[Any]) -> PlannedVariant | Result:
        """Have a chain judged, or give the reason why it is refused.

        Raises:
            OptimizerError: The optimizer could not answer.
        """
        request = plan_request(self._config, {variant: list(chain)})
        response = await self._optimizer.plan(request)
        if (planned := response.variants.get(variant)) is not None and not response.errors:
            return planned
        first = response.errors[0]
        if not first.path.startswith(f"variants.{variant}."):
            raise OptimizerError(first.message, remedy=first.remedy, path=first.path)
        reason = f"{first.path}: {first.message.rstrip('.')}. {first.remedy}".strip()
        return Result(Kind.REFUSED, reason=reason)

    async def judge(
        self,
        variant: str,
        chain: Sequence[Any],
        planned: PlannedVariant,
        *,
        time_all: bool = False,
        speeds: Measures | None = None,
    ) -> Result:
        """Build a chain, judge it, and time it when it keeps to the budget.

        Args:
            variant: Whose budget it must keep to.
            chain: As the config has it.
            planned: Its plan.
            time_all: Time it whatever the budget says.
            speeds: Its figures, where it was timed already as a hand-written variant.

        Raises:
            ServerError: Something is wrong that is not this chain's.
            ArtifactError: The store cannot be used.
        """
        try:
            artifact = planned.artifact or await self._build(variant, planned)
        except OptimizerError as error:
            if error.code in _OF_THE_MACHINE:
                raise
            return Result(Kind.FAILED, planned.recipe, reason=str(error))
        manifest = (await asyncio.to_thread(self._store.open, artifact)).manifest
        try:
            quality = await self._quality(variant, planned, artifact, manifest.quality)
        except OptimizerError as error:
            return Result(Kind.FAILED, planned.recipe, artifact, reason=str(error))
        result = judged(
            Result(Kind.MEASURED, planned.recipe, artifact),
            quality,
            manifest.size_bytes,
            self.budget(variant),
        )
        layers = float(len(manifest.graph.layers))
        result = replace(result, measures={**result.measures, "layers": layers})
        if result.kind is Kind.FAILED or (result.kind is Kind.OVER_BUDGET and not time_all):
            return result
        if speeds is not None:
            return replace(result, kind=Kind.KNOWN, measures={**speeds, **result.measures})
        self._observe(TIMED)
        try:
            measures = await self._timed(variant, chain)
        except (ServerError, ArtifactError) as error:
            return replace(result, kind=Kind.FAILED, reason=f"It could not be timed: {error}")
        return replace(result, measures={**result.measures, **measures})

    async def bring(self, variant: str, chain: Sequence[Any]) -> None:
        """Have a chain's artifact in this machine's store.

        Raises:
            OptimizerError: It cannot be built here.
        """
        planned = await self.plan(variant, chain)
        if isinstance(planned, PlannedVariant) and planned.artifact is None:
            await self._build(variant, planned)

    async def time(self, variant: str, chain: Sequence[Any], round_: int) -> Measures:
        """Time a chain that was built, in a round of measuring in turns."""
        return await self._prober(self.config_with(variant, chain), variant, round_=round_)

    async def _timed(self, variant: str, chain: Sequence[Any]) -> Measures:
        """A short look, and another when something else on the machine has spoilt it."""
        config = self.config_with(variant, chain)
        try:
            return await self._prober(config, variant, round_=None)
        except ServerError:
            return await self._prober(config, variant, round_=None)

    async def _quality(
        self, variant: str, planned: PlannedVariant, artifact: str, stored: Quality | None
    ) -> Quality | None:
        """The quality of an artifact, measured anew where the store's figures are of other texts.

        Raises:
            OptimizerError: It cannot be measured.
        """
        request = self._planned.build_request(variant, planned, threads=self._threads)
        budget = self.budget(variant)
        budget = replace(budget, kl_mean=budget.kl_mean or math.inf)  # it is needed in any case
        if (why := await doubt(budget, stored, request, isa_class())) is None:
            return stored
        _log.info("measuring quality", variant=variant, reason=why)
        return await self._optimizer.judge(
            judge_request(request, artifact), self._observe, background=False
        )

    async def _build(self, variant: str, planned: PlannedVariant) -> str:
        request = self._planned.build_request(variant, planned, threads=self._threads)
        return (await self._optimizer.build(request, self._observe, background=False)).artifact


def judged(result: Result, quality: Quality | None, size_bytes: int, budget: Budget) -> Result:
    """The result with what its manifest says, and what the budget says to that."""
    if quality is None or not math.isfinite(quality.kl_mean):
        return replace(result, kind=Kind.FAILED, reason="Its quality is not known.")
    measures = {
        "kl_mean": quality.kl_mean,
        "kl_p99": quality.kl_p99,
        "top1_agreement": quality.top1_agreement,
        "size_bytes": float(size_bytes),
    }
    violations: dict[str, float] = {str(field): 0.0 for field in budget.limits}
    breaches = budget.breaches(quality, size_bytes)
    for breach in breaches:
        violations[breach.field] = _excess(breach.measured, breach.limit)
    kind = Kind.OVER_BUDGET if breaches else result.kind
    reason = "; ".join(breach.sentence for breach in breaches)
    return replace(result, kind=kind, measures=measures, violations=violations, reason=reason)


def _excess(measured: float | None, limit: float) -> float:
    """By which share a limit is exceeded: above 0, and 1 for a figure that is missing."""
    if measured is None or not math.isfinite(measured):
        return 1.0
    return max(abs(measured - limit) / max(abs(limit), 1e-12), 1e-9)
