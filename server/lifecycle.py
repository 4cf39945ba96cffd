"""Brings variants up, one by one in the order of the config: build or find, load, attach.

Owns the transitions between states and what a failure means: that variant alone is lost. Knows
nothing of listeners, of gRPC or of how the optimizer works.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from artifacts import texts
from artifacts.digest import sha256_file
from artifacts.errors import ArtifactError, CorruptArtifactError, StoreError, TextError
from artifacts.manifest import Manifest
from artifacts.protocol import (
    BuildEvent,
    BuildFailed,
    BuildRequest,
    Built,
    PlannedVariant,
    Progress,
    StageBegun,
    StageMeasured,
)
from artifacts.store import Store, StoredArtifact
from server.catalog import BuildProgress, VariantState
from server.engine.messages import Attach, Command
from server.errors import ServerError
from server.loading import Loaded
from server.optimizer import Optimizer
from server.variants import Variants

_log = structlog.get_logger(__name__)

_LEAST_WEIGHT = 0.01  # of a variant that gets no routed traffic but may be named


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
        clock: Monotonic seconds.
    """

    variants: Variants
    planned: Mapping[str, PlannedVariant]
    request: Callable[[str, PlannedVariant], BuildRequest]
    optimizer: Optimizer
    store: Store
    load: Callable[[StoredArtifact], Loaded] | None
    post: Callable[[Command], None]
    record: StartupRecord
    step_tokens: int
    clock: Callable[[], float] = time.monotonic

    async def run(self) -> None:
        """Bring every variant to READY or FAILED."""
        for name, planned in self.planned.items():
            self.variants.change(name, chain=planned.chain, recipe=planned.recipe)
        for name in self.variants.names():
            try:
                await self._bring_up(name, self.planned[name])
            except (ArtifactError, ServerError) as error:
                self._fail(name, str(error))
            except Exception as error:  # noqa: BLE001 - the other variants must still serve
                _log.exception("unexpected failure", variant=name)
                self._fail(name, f"Unexpected failure: {type(error).__name__}: {error}")

    async def _bring_up(self, name: str, planned: PlannedVariant) -> None:
        for warning in planned.warnings:
            _log.warning("chain", variant=name, warning=warning)
        if planned.artifact is not None:
            try:
                await self._bring_up_found(name, planned.artifact)
            except CorruptArtifactError as damage:
                await self._forget(name, planned.artifact, damage)
            else:
                await self._compare_texts(name, planned)
                return
        artifact = await self._build(name, planned)
        stored = await self._open(name, artifact)
        for line in stored.manifest.audit_lines:
            _log.warning("slow kernel", variant=name, nodes=line)
        await self._serve(name, artifact, stored)

    async def _bring_up_found(self, name: str, artifact: str) -> None:
        """Serve what the store holds.

        Raises:
            CorruptArtifactError: It is damaged, and to be made anew.
        """
        stored = await self._open(name, artifact)
        try:
            await self._serve(name, artifact, stored)
        except (ArtifactError, OSError):
            # The disk may have changed it behind the store's record; an error that is told of a
            # whole artifact has another cause, and building again would only repeat it.
            await asyncio.to_thread(self.store.open, artifact, verify=True)
            raise

    async def _compare_texts(self, name: str, planned: PlannedVariant) -> None:
        """Say so when what was found was measured on another text than the config names by now."""
        view, text = self.variants.get(name), self.request(name, planned).evaluation
        quality = None if view is None or view.manifest is None else view.manifest.quality
        if text is None or quality is None or quality.text_sha256 is None:
            return
        try:
            digest = await asyncio.to_thread(sha256_file, texts.check(text.text))
        except (TextError, OSError) as error:  # the plan has refused what nobody could build with
            _log.warning("evaluation text cannot be read", variant=name, error=str(error))
            return
        if digest != quality.text_sha256:
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
        self.variants.change(name, artifact=artifact, manifest=stored.manifest)
        return stored

    async def _serve(self, name: str, artifact: str, stored: StoredArtifact) -> None:
        """Load and attach, unless artifacts are all that is wanted."""
        if self.load is None:
            self.variants.change(name, state=VariantState.READY)
            return
        self._attach(name, artifact, stored, await asyncio.to_thread(self.load, stored))

    def _attach(self, name: str, artifact: str, stored: StoredArtifact, loaded: Loaded) -> None:
        self.post(
            Attach(
                variant=name,
                session=loaded.session,
                rebuild=loaded.rebuild,
                kv_budget_tokens=loaded.limits.kv_budget_tokens,
                step_tokens=self.step_tokens,
                weight=self._weight(name),
            )
        )
        self.record.describe(name, artifact, stored.manifest)
        self.record.took("load", loaded.load_s, name)
        self.record.took("warm_up", loaded.warm_up_s, name)
        self.variants.change(
            name, state=VariantState.READY, tokenizer=loaded.tokenizer, limits=loaded.limits
        )

    async def _build(self, name: str, planned: PlannedVariant) -> str:
        begun_s = self.clock()
        self.variants.building(name)
        tracker = _ProgressTracker(self.variants, name)
        built = await self.optimizer.build(
            self.request(name, planned), tracker.observe, background=self.variants.any_ready
        )
        self.record.took("build", self.clock() - begun_s, name)
        return built.artifact

    def _weight(self, name: str) -> float:
        """The variant's share of engine time relative to an equal one."""
        traffic = self.variants.traffic
        if not traffic:
            return 1.0
        share = traffic.get(name, 0.0) / sum(traffic.values()) * len(self.variants.names())
        return max(share, _LEAST_WEIGHT)

    def _fail(self, name: str, message: str) -> None:
        self.variants.change(name, state=VariantState.FAILED, error=message, progress=None)


class _ProgressTracker:
    """Turns a build's events into the variant's progress and the log."""

    def __init__(self, variants: Variants, name: str) -> None:
        self._variants = variants
        self._name = name
        self._progress = BuildProgress()

    def observe(self, event: BuildEvent) -> None:
        match event:
            case StageBegun():
                _log.info(
                    "stage",
                    variant=self._name,
                    stage=event.stage,
                    number=f"{event.index + 1}/{event.count}",
                    reused=event.reused or None,
                )
                self._progress = BuildProgress(
                    stage=event.stage, stage_index=event.index, stage_count=event.count
                )
            case Progress():
                self._progress = BuildProgress(
                    stage=event.stage,
                    stage_index=self._progress.stage_index,
                    stage_count=self._progress.stage_count,
                    fraction=event.fraction,
                    message=event.message,
                )
            case StageMeasured():
                quality = event.record.quality
                _log.info(
                    "stage measured",
                    variant=self._name,
                    stage=event.record.stage,
                    seconds=round(event.record.seconds, 2),
                    megabytes=round(event.record.size_bytes / 1e6, 2),
                    kl_mean=None if quality is None else round(quality.kl_mean, 5),
                )
                return
            case Built() | BuildFailed():
                return
        self._variants.progressed(self._name, self._progress)
