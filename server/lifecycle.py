"""Brings variants up, one by one in the order of the config: build or find, judge, load, attach.

Owns the transitions between states and what a failure means (that variant alone is lost), or an
artifact that may not serve: a shorter chain takes its place, or nothing. Knows nothing of
listeners, of gRPC, of how the optimizer works or of how artifacts are judged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog

from artifacts import machine
from artifacts.errors import ArtifactError, BugError, CorruptArtifactError, StoreError
from artifacts.host_figures import HostFigures
from artifacts.isa import isa_class
from artifacts.manifest import Manifest
from artifacts.protocol import BuildRequest, PlannedVariant
from artifacts.store import Store, StoredArtifact
from server.budget import Budget, OnBreach, prefixes
from server.catalog import VariantState
from server.drafts import Drafts, drafters_first, same_tokens
from server.engine.messages import Attach, Command, Detach, GiveWay
from server.errors import OptimizerError, OverBudgetError, ServerError
from server.figures import text_digest
from server.judging import Attempt, Judging
from server.loading import Loaded
from server.optimizer import Optimizer
from server.planning import part, part_request
from server.quiet_thread import in_quiet_thread
from server.tracking import ProgressTracker
from server.variants import Variants, engine_share

_log = structlog.get_logger(__name__)


class Load(Protocol):
    """Turns an artifact into something to serve, with what drafts for it."""

    def __call__(
        self, stored: StoredArtifact, *, drafts: Drafts | None, drafter: StoredArtifact | None
    ) -> Loaded:
        """See ``server.loading.load``."""
        ...


class StartupRecord(Protocol):
    """Who is told how long phases took and what serves (telemetry)."""

    def took(self, phase: str, seconds: float, variant: str = "") -> None:
        """A phase is over."""
        ...

    def describe(self, variant: str, artifact: str, manifest: Manifest) -> None:
        """This artifact serves."""
        ...


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What is needed to bring variants up.

    Attributes:
        variants: Whose states are changed.
        planned: The optimizer's answer for each variant.
        request: Makes the build request of a variant.
        optimizer: Builds.
        store: Where artifacts lie.
        load: Turns an artifact into a session; runs on a worker thread. None: only build.
        post: Hands commands to the engine.
        record: Is told of durations.
        step_tokens: Token budget of one step.
        budgets: What each variant may lose; those that are not named have no limit.
        isa: This machine's class of processor.
        clock: Monotonic seconds.
        figures: Looks up what was measured of an artifact on this machine.
        drafts: Where the drafted tokens of those variants come from that have any.
    """

    variants: Variants
    planned: MutableMapping[str, PlannedVariant]
    request: Callable[[str, PlannedVariant], BuildRequest]
    optimizer: Optimizer
    store: Store
    load: Load | None
    post: Callable[[Command], None]
    record: StartupRecord
    step_tokens: int
    budgets: MutableMapping[str, Budget] = field(default_factory=dict)
    isa: str = field(default_factory=isa_class)
    clock: Callable[[], float] = time.monotonic
    figures: Callable[[str], HostFigures | None] = lambda _: None
    drafts: MutableMapping[str, Drafts] = field(default_factory=dict)
    one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Bring every variant to READY or FAILED, then measure those that serve unmeasured."""
        for name, planned in self.planned.items():
            self.variants.change(name, chain=planned.chain, recipe=planned.recipe)
        names = self.variants.names()  # others may be loaded meanwhile
        drafters = {name: drafts.variant for name, drafts in self.drafts.items() if drafts.variant}
        for name in drafters_first(names, drafters):
            await self._bring_up_alone(name)
        await self._verify_waiting(names)

    async def bring_up(
        self, name: str, planned: PlannedVariant, budget: Budget | None, drafts: Drafts | None
    ) -> None:
        """Bring one variant up while others serve; ``Variants`` knows it already."""
        # Who loads one meanwhile wants to know what it lost before anybody is sent there, and may
        # want it gone again at once: it is measured as it is built.
        self.planned[name] = planned.model_copy(update={"streams": False})
        self.budgets.pop(name, None)
        if budget is not None:
            self.budgets[name] = budget
        self.drafts.pop(name, None)
        if drafts is not None:
            self.drafts[name] = drafts
        self.variants.change(name, chain=planned.chain, recipe=planned.recipe)
        await self._bring_up_alone(name)
        await self._verify_waiting((name,))

    async def may_draft(self, drafter: str, planned: PlannedVariant) -> bool:
        """Whether a variant's tokens are those of what is planned, as far as is known by now.

        An artifact that is to be built yet, or is damaged, is judged when it is loaded.
        """
        view = self.variants.get(drafter)
        if view is None or view.manifest is None or planned.artifact is None:
            return True
        try:
            manifest = await asyncio.to_thread(self.store.manifest, planned.artifact)
        except ArtifactError:
            return True
        return same_tokens(manifest, view.manifest)

    async def take_down(self, name: str) -> None:
        """Take no new requests, wait until those that run have ended, and let the memory go."""
        await self._detached(name, VariantState.UNLOADED)
        self.variants.change(name, tokenizer=None, template=None, limits=None, drafts=None)
        await asyncio.to_thread(machine.give_memory_back)

    async def _bring_up_alone(self, name: str) -> None:
        async with self.one_at_a_time:
            with self._losing_only(name), self._giving_way():
                await self._bring_up(name, self.planned[name])

    async def _verify_waiting(self, names: Sequence[str]) -> None:
        for name in self._judging.waiting():
            if name not in names:  # whoever brings it up looks after it
                continue
            with self._losing_only(name), self._giving_way():
                await self._verify(name)

    @contextmanager
    def _losing_only(self, name: str) -> Iterator[None]:
        """Whatever goes wrong costs this variant alone: the others must still serve."""
        try:
            yield
        except (ArtifactError, ServerError) as error:
            self._fail(name, str(error))
        except Exception as error:  # noqa: BLE001 - a bug too is the fault of one variant
            _log.exception("unexpected failure", variant=name)
            self._fail(name, f"Unexpected failure: {type(error).__name__}: {error}")

    @contextmanager
    def _giving_way(self) -> Iterator[None]:
        """What is done beside streams takes what they leave, so they must leave a little."""
        if not self.variants.any_ready:
            yield
            return
        self.post(GiveWay(begins=True))
        try:
            yield
        finally:
            self.post(GiveWay(begins=False))

    async def _bring_up(self, name: str, planned: PlannedVariant) -> None:
        for warning in planned.warnings:
            _log.warning("chain", variant=name, warning=warning)
        try:
            await self._attempt(name, Attempt(planned))
        except OverBudgetError as over:
            if not self._rolls_back(name):
                raise
            await self._roll_back(name, over)

    async def _roll_back(self, name: str, over: OverBudgetError) -> None:
        """Serve the longest part of the chain that keeps to the budget; the original always may."""
        whole = self.planned[name]
        lengths = prefixes(whole.chain)
        answer = await self.optimizer.plan(part_request(self.request(name, whole), lengths))
        for error in answer.errors:
            raise OptimizerError(error.message, remedy=error.remedy, path=error.path)
        for kept in lengths:
            planned = answer.variants[part(name, kept)]
            _log.warning("rolling back", variant=name, stages_kept=kept, reasons=over.breaches)
            self.variants.change(
                name, recipe=planned.recipe, artifact=None, manifest=None, error=None
            )
            left_out = len(whole.chain) - kept
            with suppress(OverBudgetError):
                await self._attempt(name, Attempt(planned, left_out, over.breaches))
                return

    async def _attempt(self, name: str, attempt: Attempt) -> None:
        """Serve what is planned: the artifact that the store holds, or a new one.

        Raises:
            OverBudgetError: It may not serve.
        """
        planned = attempt.planned
        if planned.artifact is not None:
            try:
                await self._bring_up_found(name, planned.artifact, attempt)
            except CorruptArtifactError as damage:
                await self._forget(name, planned.artifact, damage)
            else:
                await self._compare_texts(name, planned)
                return
        artifact = await self._build(name, attempt)
        stored = await self._open(name, artifact)
        for line in stored.manifest.audit_lines:
            _log.warning("slow kernel", variant=name, nodes=line)
        await self._judge_and_serve(name, artifact, stored, attempt)

    async def _bring_up_found(self, name: str, artifact: str, attempt: Attempt) -> None:
        """Serve what the store holds.

        Raises:
            CorruptArtifactError: It is damaged, and to be made anew.
        """
        stored = await self._open(name, artifact)
        try:
            await self._judge_and_serve(name, artifact, stored, attempt)
        except (ArtifactError, OSError):
            # The disk may have changed it behind the store's record; an error that is told of a
            # whole artifact has another cause, and building again would only repeat it.
            await asyncio.to_thread(self.store.open, artifact, verify=True)
            raise

    async def _compare_texts(self, name: str, planned: PlannedVariant) -> None:
        """Say so when what was found was measured on another text than the config names by now."""
        view = self.variants.get(name)
        quality = None if view is None or view.manifest is None else view.manifest.quality
        if quality is None or quality.text_sha256 is None:
            return
        digest = await text_digest(self.request(name, planned))
        if digest is not None and digest != quality.text_sha256:
            _log.warning(
                "quality was measured on another text than evaluation.text",
                variant=name,
                remedy="Compare artifacts on it with python -m artifacts.measure.",
            )

    async def _forget(self, name: str, artifact: str, damage: CorruptArtifactError) -> None:
        """Drop a damaged artifact, so that it is made anew.

        Raises:
            CorruptArtifactError: The damage, when nothing can be changed about it.
        """
        try:
            await asyncio.to_thread(self.store.forget, artifact)
        except StoreError as refusal:
            _log.warning("a damaged artifact cannot be dropped", variant=name, error=str(refusal))
            raise damage from refusal
        _log.warning(
            "stored artifact is damaged; building it again",
            variant=name,
            artifact=artifact,
            error=str(damage),
        )
        self.variants.change(name, artifact=None, manifest=None)

    async def _open(self, name: str, artifact: str) -> StoredArtifact:
        self.variants.change(name, state=VariantState.LOADING, progress=None)
        stored = await asyncio.to_thread(self.store.open, artifact)
        figures = await asyncio.to_thread(self.figures, artifact)
        self.variants.change(name, artifact=artifact, manifest=stored.manifest, figures=figures)
        return stored

    async def _judge_and_serve(
        self, name: str, artifact: str, stored: StoredArtifact, attempt: Attempt
    ) -> None:
        """Load and attach what may serve, unless artifacts are all that is wanted."""
        await self._judging.before_serving(
            name, artifact, stored.manifest, attempt, may_wait=self._may_wait(name, attempt)
        )
        if self.load is None:
            self.variants.change(name, state=VariantState.READY, progress=None)
            return
        self.variants.change(name, state=VariantState.LOADING, progress=None)
        drafts, drafter = await self._drafter(name)
        work = partial(self.load, stored, drafts=drafts, drafter=drafter)
        run = in_quiet_thread if self.variants.any_ready else asyncio.to_thread
        self._attach(name, artifact, await run(work))

    async def _drafter(self, name: str) -> tuple[Drafts | None, StoredArtifact | None]:
        """Where a variant's drafts come from, and the artifact that makes them."""
        drafts = self.drafts.get(name)
        if drafts is None or not drafts.variant:
            return drafts, None
        view = self.variants.get(drafts.variant)
        if view is None or view.artifact is None or view.state is not VariantState.READY:
            _log.warning("serves without drafts", variant=name, missing=drafts.variant)
            return None, None
        return drafts, await asyncio.to_thread(self.store.open, view.artifact)

    async def _verify(self, name: str) -> None:
        """Measure what serves already, and withdraw it when it is over a budget.

        Raises:
            OverBudgetError: It is, and nothing takes its place.
        """
        view = self.variants.get(name)
        if view is None or view.artifact is None or view.manifest is None:
            raise BugError(f"Variant {name!r} serves without an artifact.")
        over: OverBudgetError | None = None
        attempt = Attempt(self.planned[name])
        try:
            await self._judging.after_serving(name, view.artifact, view.manifest, attempt)
        except OverBudgetError as error:
            over = error
        self._describe(name, view.artifact)  # by now with figures
        if over is None:
            return
        if not self._rolls_back(name):
            self.post(Detach(name, when_idle=True))
            raise over
        await self._detached(name, VariantState.PENDING)
        await self._roll_back(name, over)

    async def _detached(self, name: str, state: VariantState) -> None:
        """Take no new requests, and wait until those that run have ended."""
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        self.variants.change(name, state=state)
        self.post(Detach(name, when_idle=True, gone=lambda: loop.call_soon_threadsafe(gone.set)))
        await gone.wait()

    def _attach(self, name: str, artifact: str, loaded: Loaded) -> None:
        self.post(
            Attach(
                variant=name,
                session=loaded.session,
                rebuild=loaded.rebuild,
                kv_budget_tokens=loaded.limits.kv_budget_tokens,
                step_tokens=self.step_tokens,
                weight=engine_share(self.variants, name),
                drafting=loaded.drafting,
            )
        )
        self.record.took("load", loaded.load_s, name)
        self.record.took("warm_up", loaded.warm_up_s, name)
        self._describe(name, artifact)
        self.variants.change(
            name,
            state=VariantState.READY,
            tokenizer=loaded.tokenizer,
            template=loaded.template,
            limits=loaded.limits,
            drafts=None if loaded.drafting is None else self.drafts[name],
        )

    def _describe(self, name: str, artifact: str) -> None:
        view = self.variants.get(name)
        if view is not None and view.manifest is not None:
            self.record.describe(name, artifact, view.manifest)

    async def _build(self, name: str, attempt: Attempt) -> str:
        begun_s = self.clock()
        self.variants.building(name)
        request = self.request(name, attempt.planned)
        if self._may_wait(name, attempt):
            request = request.model_copy(update={"measure": False})
        tracker = ProgressTracker(self.variants, name)
        built = await self.optimizer.build(
            request, tracker.observe, background=self.variants.any_ready
        )
        self.record.took("build", self.clock() - begun_s, name)
        return built.artifact

    @property
    def _judging(self) -> Judging:
        return Judging(self.variants, self.budgets, self.request, self.optimizer, self.isa)

    def _rolls_back(self, name: str) -> bool:
        return self.budgets[name].on_breach is OnBreach.ROLLBACK

    def _may_wait(self, name: str, attempt: Attempt) -> bool:
        """Whether measuring comes after serving."""
        return self.load is not None and self._judging.may_wait(name, attempt)

    def _fail(self, name: str, message: str) -> None:
        self.variants.change(name, state=VariantState.FAILED, error=message, progress=None)
