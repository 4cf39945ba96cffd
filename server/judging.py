"""Judges artifacts by their variants' budgets: with the figures that are there, or with new ones.

Owns what is said about a variant's budget in its view, and which artifact may serve. Knows nothing
of building, of loading or of what takes the place of an artifact that may not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from artifacts.manifest import Manifest, Quality
from artifacts.protocol import BuildEvent, BuildRequest, PlannedVariant
from server.budget import Budget, OnBreach, When, told
from server.catalog import BudgetState, BudgetView, VariantState
from server.errors import OptimizerError, OverBudgetError
from server.figures import doubt
from server.optimizer import Optimizer
from server.planning import judge_request
from server.tracking import ProgressTracker
from server.variants import Variants

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a variant may come to serve.

    Attributes:
        planned: The chain, or the first stages of it.
        left_out: How many stages of the configured chain it lacks.
        reasons: What was over the budget with them, a sentence each.
    """

    planned: PlannedVariant
    left_out: int = 0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judging:
    """What is needed to judge.

    Attributes:
        variants: Whose views say how they stand to their budgets.
        budgets: Of the variants that have one.
        request: Makes the build request of a variant.
        optimizer: Measures.
        isa: This machine's class of processor.
    """

    variants: Variants
    budgets: Mapping[str, Budget]
    request: Callable[[str, PlannedVariant], BuildRequest]
    optimizer: Optimizer
    isa: str

    def may_wait(self, name: str, attempt: Attempt) -> bool:
        """Whether it may serve before it is measured; what a rollback comes to never may.

        Where no limit needs its figures it may, if a build that does not measure is quick.
        """
        if attempt.left_out:
            return False
        budget = self.budgets.get(name)
        if budget is None or not budget.needs_quality:
            return attempt.planned.streams
        return budget.when is When.AFTER_SERVING

    def waiting(self) -> list[str]:
        """The variants that serve before they are measured."""
        return [name for name in self.variants.names() if self._waits(name)]

    async def before_serving(
        self, name: str, artifact: str, manifest: Manifest, attempt: Attempt, *, may_wait: bool
    ) -> None:
        """Judge an artifact, measured first where its figures are worthless.

        Raises:
            OverBudgetError: It may not serve.
            OptimizerError: It cannot be measured.
        """
        if (budget := self.budgets.get(name)) is None:
            return
        request = self.request(name, attempt.planned)
        if (why := await doubt(budget, manifest.quality, request, self.isa)) is not None:
            if may_wait:
                view = self._view(name, BudgetState.UNVERIFIED, attempt)
                self.variants.change(name, budget=view)
                return
            _log.info("measuring before serving", variant=name, reason=why)
            self.variants.building(name)
            observe = ProgressTracker(self.variants, name).observe
            try:
                manifest = manifest.measured(await self._measure(request, artifact, observe))
            except OptimizerError as error:
                if budget.on_breach is not OnBreach.WARN:
                    raise
                self._give_up(name, attempt, error)
                return
        self._decide(name, manifest, attempt)

    async def after_serving(
        self, name: str, artifact: str, manifest: Manifest, attempt: Attempt
    ) -> None:
        """Measure what serves, and judge it; when that cannot be, it goes on as it is.

        Raises:
            OverBudgetError: It may serve no longer.
        """
        request = self.request(name, attempt.planned)
        is_judged = self._is_judged(name)
        try:
            quality = await self._measure(request, artifact, lambda _: None)
        except OptimizerError as error:
            if is_judged:
                self._give_up(name, attempt, error)
            else:
                _log.warning("cannot be measured", variant=name, error=str(error))
            return
        if not self._waits(name):  # the engine has lost it meanwhile
            return
        if is_judged:
            self._decide(name, manifest.measured(quality), attempt)
        else:
            self.variants.change(name, manifest=manifest.measured(quality))

    def _decide(self, name: str, manifest: Manifest, attempt: Attempt) -> None:
        """Say how an artifact stands to the budget.

        Raises:
            OverBudgetError: It may not serve.
        """
        budget = self.budgets[name]
        breaches = told(budget.breaches(manifest.quality, manifest.size_bytes), manifest)
        state = BudgetState.EXCEEDED if breaches else BudgetState.WITHIN
        view = self._view(name, state, attempt, breaches)
        self.variants.change(name, manifest=manifest, budget=view)
        if not breaches:
            return
        is_last_resort = budget.on_breach is OnBreach.ROLLBACK and not attempt.planned.chain
        if budget.on_breach is not OnBreach.WARN and not is_last_resort:
            raise OverBudgetError(breaches)
        _log.warning("over budget", variant=name, breaches=breaches)

    async def _measure(
        self, request: BuildRequest, artifact: str, observe: Callable[[BuildEvent], None]
    ) -> Quality:
        return await self.optimizer.judge(
            judge_request(request, artifact), observe, background=self.variants.any_ready
        )

    def _is_unverified(self, name: str) -> bool:
        view = self.variants.get(name)
        return (
            view is not None
            and view.state is VariantState.READY
            and view.budget is not None
            and view.budget.state is BudgetState.UNVERIFIED
        )

    def _is_judged(self, name: str) -> bool:
        """Whether a limit needs its figures."""
        budget = self.budgets.get(name)
        return budget is not None and budget.needs_quality

    def _waits(self, name: str) -> bool:
        """Whether it serves, and its figures are still to come."""
        if self._is_judged(name):
            return self.budgets[name].when is When.AFTER_SERVING and self._is_unverified(name)
        view = self.variants.get(name)
        return view is not None and view.state is VariantState.READY and view.is_unmeasured

    def _give_up(self, name: str, attempt: Attempt, error: OptimizerError) -> None:
        _log.error("the budget cannot be judged", variant=name, error=str(error))
        view = self._view(name, BudgetState.UNVERIFIED, attempt, (str(error),))
        self.variants.change(name, budget=view)

    def _view(
        self, name: str, state: BudgetState, attempt: Attempt, notes: tuple[str, ...] = ()
    ) -> BudgetView:
        return BudgetView(
            state=state,
            limits=self.budgets[name].limits,
            notes=(*attempt.reasons, *notes),
            rolled_back_stages=attempt.left_out,
        )
