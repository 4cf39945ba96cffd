"""Variants come up one by one; what fails is lost alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from artifacts.errors import CorruptArtifactError, SessionError, StoreError
from artifacts.manifest import Manifest
from artifacts.protocol import (
    BuildEvent,
    BuildRequest,
    Built,
    PlannedVariant,
    PlanRequest,
    PlanResponse,
    Progress,
    StageBegun,
)
from server.catalog import VariantLimits, VariantState, VariantView
from server.drafts import DraftMethod, Drafts
from server.engine.messages import Attach, Command, Detach, GiveWay
from server.errors import OptimizerError
from server.lifecycle import Lifecycle
from server.variants import Variants

LIMITS = VariantLimits(max_length=64, slots=2, kv_budget_tokens=100, max_waiting=1)


@dataclass
class FakeOptimizer:
    """Builds ``artifact-of-<variant>``, or fails as told."""

    failures: dict[str, Exception] = field(default_factory=dict)
    builds: list[tuple[str, bool]] = field(default_factory=list)
    during: Callable[[], None] = lambda: None

    async def plan(self, request: PlanRequest) -> PlanResponse:
        raise NotImplementedError

    async def build(
        self, request: BuildRequest, observe: Callable[[BuildEvent], None], *, background: bool
    ) -> Built:
        self.builds.append((request.variant, background))
        observe(StageBegun(stage="export", index=1, count=4))
        observe(Progress(stage="export", fraction=0.5, message="half"))
        self.during()
        await asyncio.sleep(0)
        if failure := self.failures.get(request.variant):
            raise failure
        return Built(artifact=f"artifact-of-{request.variant}")


@dataclass
class FakeStore:
    """Holds every artifact but the damaged ones; some damage only the whole hash shows."""

    of_all: Manifest
    manifests: dict[str, Manifest] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    secretly_damaged: set[str] = field(default_factory=set)
    verified: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    is_read_only: bool = False

    def open(self, artifact: str, *, verify: bool = False) -> Any:
        if verify:
            self.verified.append(artifact)
        if artifact in self.damaged or (verify and artifact in self.secretly_damaged):
            raise CorruptArtifactError(f"{artifact} is damaged.", remedy="Build it again.")
        return SimpleNamespace(manifest=self.manifest(artifact), artifact=artifact)

    def manifest(self, artifact: str) -> Manifest:
        if artifact in self.damaged:
            raise CorruptArtifactError(f"{artifact} is damaged.", remedy="Build it again.")
        return self.manifests.get(artifact, self.of_all)

    def forget(self, artifact: str) -> None:
        if self.is_read_only:
            raise StoreError("The store cannot be written.")
        self.forgotten.append(artifact)


@dataclass
class Record:
    phases: list[tuple[str, str]] = field(default_factory=list)
    described: list[tuple[str, str]] = field(default_factory=list)

    def took(self, phase: str, seconds: float, variant: str = "") -> None:
        assert seconds >= 0
        self.phases.append((variant, phase))

    def describe(self, variant: str, artifact: str, manifest: Manifest) -> None:  # noqa: ARG002
        self.described.append((variant, artifact))


@dataclass
class Scene:
    lifecycle: Lifecycle
    variants: Variants
    optimizer: FakeOptimizer
    store: FakeStore
    record: Record
    posted: list[Command]
    history: list[tuple[str, VariantState]]

    def view(self, name: str) -> VariantView:
        view = self.variants.get(name)
        assert view is not None
        return view


@pytest.fixture
def scene(manifest: Manifest) -> Callable[..., Scene]:
    def make(
        names: list[str],
        *,
        stored: dict[str, str] | None = None,
        traffic: dict[str, float] | None = None,
        load_failures: dict[str, Exception] | None = None,
        drafts: dict[str, Drafts] | None = None,
    ) -> Scene:
        variants = Variants(names, traffic or {}, clock=lambda: 5.0)
        history: list[tuple[str, VariantState]] = []

        def remember(view: VariantView) -> None:
            if history[-1:] != [(view.name, view.state)]:
                history.append((view.name, view.state))

        variants.watch(remember)
        optimizer, store, record = FakeOptimizer(), FakeStore(manifest), Record()
        posted: list[Command] = []

        def load(found: Any, *, drafts: Any, drafter: Any) -> Any:
            if failure := (load_failures or {}).get(found.artifact):
                raise failure
            return SimpleNamespace(
                session="session",
                rebuild=lambda: "session",
                tokenizer="tokenizer",
                limits=LIMITS,
                load_s=1.0,
                warm_up_s=0.5,
                template=None,
                drafting=drafts and (drafts.method.value, drafter and drafter.artifact),
            )

        lifecycle = Lifecycle(
            variants=variants,
            planned={
                name: PlannedVariant(recipe="r", chain=(), artifact=(stored or {}).get(name))
                for name in names
            },
            request=lambda name, planned: BuildRequest(
                model="m", variant=name, chain=planned.chain, recipe="r", store="/s"
            ),
            optimizer=optimizer,
            store=store,  # type: ignore[arg-type]
            load=load,
            post=posted.append,
            record=record,
            step_tokens=32,
            clock=lambda: 5.0,
            drafts=drafts or {},
        )
        return Scene(lifecycle, variants, optimizer, store, record, posted, history)

    return make


async def test_each_variant_serves_before_the_next_is_built(scene: Callable[..., Scene]) -> None:
    """The first is of use while the others are still on their way."""
    stage = scene(["a", "b"])
    await stage.lifecycle.run()
    assert stage.history == [
        ("a", VariantState.PENDING),
        ("b", VariantState.PENDING),
        ("a", VariantState.BUILDING),
        ("a", VariantState.LOADING),
        ("a", VariantState.READY),
        ("b", VariantState.BUILDING),
        ("b", VariantState.LOADING),
        ("b", VariantState.READY),
    ]
    # Whoever serves leaves a little of the processor, as long as something is built beside it.
    kinds = [type(command) for command in stage.posted]
    assert kinds == [Attach, GiveWay, Attach, GiveWay]
    assert [c.begins for c in stage.posted if isinstance(c, GiveWay)] == [True, False]


LOOKUP = Drafts(DraftMethod.PROMPT_LOOKUP, "", 8)


async def test_who_drafts_is_brought_up_before_those_it_drafts_for(
    scene: Callable[..., Scene],
) -> None:
    """Whatever the config's order; its artifact is loaded beside theirs."""
    ask_c = Drafts(DraftMethod.DRAFT, "c", 4)
    stage = scene(["a", "b", "c"], drafts={"a": ask_c, "b": LOOKUP})
    await stage.lifecycle.run()
    attached = [each for each in stage.posted if isinstance(each, Attach)]
    assert [(each.variant, each.drafting) for each in attached] == [
        ("c", None),
        ("a", ("draft", "artifact-of-c")),
        ("b", ("prompt_lookup", None)),
    ]
    assert [stage.view(name).drafts for name in "abc"] == [ask_c, LOOKUP, None]
    await asyncio.gather(stage.lifecycle.take_down("a"), gone(stage))
    assert stage.view("a").drafts is None


async def gone(stage: Scene) -> None:
    """The engine has let the latest go."""
    while not isinstance(stage.posted[-1], Detach):  # noqa: ASYNC110 - it is a list
        await asyncio.sleep(0)
    stage.posted[-1].gone()


async def test_without_its_drafter_a_variant_serves_all_the_same(
    scene: Callable[..., Scene],
) -> None:
    """Slower, and the log says so."""
    stage = scene(["a", "b"], drafts={"a": Drafts(DraftMethod.DRAFT, "b", 4)})
    stage.optimizer.failures["b"] = OptimizerError("planted")
    with capture_logs() as logs:
        await stage.lifecycle.run()
    assert stage.view("a").state is VariantState.READY
    assert stage.view("a").drafts is None
    (line,) = (line for line in logs if line["event"] == "serves without drafts")
    assert (line["log_level"], line["variant"], line["missing"]) == ("warning", "a", "b")


async def test_what_is_loaded_later_drafts_as_it_was_asked_to(scene: Callable[..., Scene]) -> None:
    """The next load says anew who drafts; a drafter that went leaves those it drafts for alone."""
    stage = scene(["a", "b"], drafts={"b": LOOKUP})
    await stage.lifecycle.run()
    planned = PlannedVariant(recipe="n", chain=(), artifact="kept")
    stage.variants.add("new")
    ask_a = Drafts(DraftMethod.DRAFT, "a", 4)
    for asked, drafting, shown in (
        (ask_a, ("draft", "artifact-of-a"), ask_a),
        (LOOKUP, ("prompt_lookup", None), LOOKUP),
        (None, None, None),
        (ask_a, ("draft", "artifact-of-a"), ask_a),
    ):
        await stage.lifecycle.bring_up("new", planned, None, asked)
        attached = [each for each in stage.posted if isinstance(each, Attach)]
        assert (attached[-1].variant, attached[-1].drafting) == ("new", drafting)
        assert stage.view("new").drafts == shown
    stage.posted.clear()
    await asyncio.gather(stage.lifecycle.take_down("a"), gone(stage))
    assert [each.variant for each in stage.posted if isinstance(each, Detach)] == ["a"]
    assert (stage.view("new").state, stage.view("new").drafts) == (VariantState.READY, ask_a)
    assert stage.view("b").drafts == LOOKUP


async def test_whose_tokens_are_others_may_not_draft(scene: Callable[..., Scene]) -> None:
    """As far as the store can tell; what it does not hold, or holds damaged, is judged later."""
    stage = scene(["a"])
    own = stage.store.of_all
    tokenizer = own.files[0].model_copy(update={"name": "tokenizer.json"})
    own = own.model_copy(update={"files": (*own.files, tokenizer)})
    other = tokenizer.model_copy(update={"sha256": "f" * 64})
    graph = own.graph.model_copy(update={"vocab_size": own.graph.vocab_size + 1})
    stage.store.of_all = own
    stage.store.manifests = {
        "wider": own.model_copy(update={"graph": graph}),
        "other": own.model_copy(update={"files": (*own.files[:-1], other)}),
    }
    await stage.lifecycle.run()
    stage.store.damaged = {"damaged"}
    for artifact, may in (
        ("same", True), ("wider", False), ("other", False), ("damaged", True), (None, True),
    ):  # fmt: skip
        planned = PlannedVariant(recipe="n", chain=(), artifact=artifact)
        assert await stage.lifecycle.may_draft("a", planned) is may, artifact


async def test_only_a_build_beside_serving_is_in_the_background(
    scene: Callable[..., Scene],
) -> None:
    """While nobody is served, the machine is the build's."""
    stage = scene(["a", "b"])
    await stage.lifecycle.run()
    assert stage.optimizer.builds == [("a", False), ("b", True)]


async def test_a_stored_artifact_is_not_built(scene: Callable[..., Scene]) -> None:
    """A start from the store needs no optimizer."""
    stage = scene(["a"], stored={"a": "kept"})
    await stage.lifecycle.run()
    assert stage.optimizer.builds == []
    view = stage.view("a")
    assert (view.state, view.artifact, view.limits) == (VariantState.READY, "kept", LIMITS)
    assert stage.record.described == [("a", "kept")]
    assert stage.record.phases == [("a", "load"), ("a", "warm_up")]


async def test_slow_kernels_are_logged_when_they_are_built(scene: Callable[..., Scene]) -> None:
    """Once, by the build; later starts show them in ``variants`` alone."""
    for stored, count in ({}, 1), ({"a": "kept"}, 0):
        with capture_logs() as logs:
            await scene(["a"], stored=stored).lifecycle.run()
        told = [entry for entry in logs if entry["event"] == "slow kernel"]
        assert len(told) == count
        for entry in told:
            assert (entry["log_level"], entry["variant"]) == ("warning", "a")
            assert entry["nodes"] == "MatMul (first and 1 more): 4.2 MB"


async def test_a_failed_variant_does_not_stop_the_others(scene: Callable[..., Scene]) -> None:
    """Killed builds, refused loads and plain bugs each cost one variant, with their message."""
    stage = scene(
        ["a", "b", "c", "d"],
        load_failures={
            "artifact-of-b": SessionError("ONNX Runtime refused it."),
            "artifact-of-c": KeyError("a bug"),
        },
    )
    stage.optimizer.failures["a"] = OptimizerError("It was killed.", remedy="Give it memory.")
    await stage.lifecycle.run()
    assert [view.state.value for view in stage.variants.views] == [
        "failed", "failed", "failed", "ready",
    ]  # fmt: skip
    assert stage.view("a").error == "It was killed. Give it memory."
    assert stage.view("b").error == "ONNX Runtime refused it."
    assert "KeyError" in (stage.view("c").error or "")
    assert stage.variants.settled
    assert [command.variant for command in stage.posted if isinstance(command, Attach)] == ["d"]


async def test_a_damaged_stored_artifact_is_built_again_once(
    scene: Callable[..., Scene],
) -> None:
    """What the disk has changed is dropped and made anew, and the variant serves."""
    stage = scene(["a"], stored={"a": "old"})
    stage.store.damaged = {"old"}
    await stage.lifecycle.run()
    assert stage.store.forgotten == ["old"]
    assert stage.view("a").artifact == "artifact-of-a"
    assert stage.view("a").state is VariantState.READY


@pytest.mark.parametrize(
    "failure",
    [
        CorruptArtifactError("tokenizer.json: is no tokenizer."),
        SessionError("ONNX Runtime cannot load model.onnx."),
        OSError("Input/output error"),
    ],
)
async def test_damage_that_only_loading_notices_is_built_again(
    scene: Callable[..., Scene], failure: Exception
) -> None:
    """The record of sizes knew nothing of it; the whole hash does."""
    stage = scene(["a"], stored={"a": "old"}, load_failures={"old": failure})
    stage.store.secretly_damaged = {"old"}
    while_building: list[str | None] = []
    stage.optimizer.during = lambda: while_building.append(stage.view("a").artifact)
    await stage.lifecycle.run()
    assert while_building == [None]
    assert (stage.store.verified, stage.store.forgotten) == (["old"], ["old"])
    assert stage.view("a").artifact == "artifact-of-a"
    assert stage.view("a").state is VariantState.READY


async def test_a_whole_artifact_that_does_not_load_is_not_built_again(
    scene: Callable[..., Scene],
) -> None:
    """Its files are what they were: what is wrong would be wrong again, and is told."""
    failure = SessionError("engine.max_length: 99 is too much.")
    stage = scene(["a"], stored={"a": "old"}, load_failures={"old": failure})
    await stage.lifecycle.run()
    assert stage.store.verified == ["old"]
    assert stage.optimizer.builds == []
    assert stage.view("a").error == "engine.max_length: 99 is too much."


async def test_damage_in_a_store_that_cannot_be_written_is_told_as_damage(
    scene: Callable[..., Scene],
) -> None:
    """That it cannot be dropped is not what the operator has to mend."""
    stage = scene(["a"], stored={"a": "old"})
    stage.store.damaged = {"old"}
    stage.store.is_read_only = True
    await stage.lifecycle.run()
    assert stage.view("a").error == "old is damaged. Build it again."
    assert stage.optimizer.builds == []


async def test_a_build_s_error_begins_with_the_field_at_fault(scene: Callable[..., Scene]) -> None:
    """GetVariant and the log say which line of the config it is."""
    stage = scene(["a"])
    path = "variants.a.chain[0].quantize.embedding_bits"
    stage.optimizer.failures["a"] = OptimizerError("Too odd.", remedy="Use 8.", path=path)
    await stage.lifecycle.run()
    assert stage.view("a").error == f"{path}: Too odd. Use 8."


async def test_a_rebuilt_artifact_that_is_damaged_again_fails(
    scene: Callable[..., Scene],
) -> None:
    """A broken disk must not make the server build for ever."""
    stage = scene(["a"], stored={"a": "old"})
    stage.store.damaged = {"old", "artifact-of-a"}
    await stage.lifecycle.run()
    assert stage.view("a").state is VariantState.FAILED
    assert stage.optimizer.builds == [("a", False)]


async def test_progress_is_seen_while_a_build_runs(scene: Callable[..., Scene]) -> None:
    """GetVariant tells stage, number and how far it is."""
    stage = scene(["a"])
    seen: list[Any] = []
    stage.optimizer.during = lambda: seen.append(stage.view("a").progress)
    await stage.lifecycle.run()
    progress = seen[0]
    assert (progress.stage, progress.stage_index, progress.stage_count) == ("export", 1, 4)
    assert (progress.fraction, progress.message) == (0.5, "half")
    assert stage.view("a").progress is None


@pytest.mark.parametrize(
    ("traffic", "weights"),
    [({}, [1.0, 1.0]), ({"a": 3, "b": 1}, [1.5, 0.5]), ({"a": 1}, [2.0, 0.01])],
)
async def test_engine_shares_follow_traffic(
    scene: Callable[..., Scene], traffic: dict[str, float], weights: list[float]
) -> None:
    """A variant without routed traffic still gets a turn when it is named."""
    stage = scene(["a", "b"], traffic=traffic)
    await stage.lifecycle.run()
    assert [c.weight for c in stage.posted if isinstance(c, Attach)] == weights


async def test_building_only_loads_nothing(scene: Callable[..., Scene]) -> None:
    """``build`` makes artifacts and attaches none."""
    stage = scene(["a"])
    only_build = {
        name: getattr(stage.lifecycle, name) for name in Lifecycle.__dataclass_fields__
    } | {"load": None}
    await Lifecycle(**only_build).run()
    assert stage.view("a").state is VariantState.READY
    assert stage.posted == []


def test_the_build_s_clock_runs_between_events() -> None:
    """Elapsed time is as of the question, not as of the last event."""
    now = [10.0]
    variants = Variants(["a"], {}, clock=lambda: now[0])
    variants.building("a")
    now[0] = 17.5
    view = variants.get("a")
    assert view is not None
    assert view.progress is not None
    assert view.progress.elapsed_s == 7.5


# While the server runs.


async def test_a_variant_is_brought_up_later(scene: Callable[..., Scene]) -> None:
    """In the background of those that serve, by its own chain and budget."""
    stage = scene(["a"])
    await stage.lifecycle.run()
    stage.variants.add("new")
    planned = PlannedVariant(recipe="r2", chain=(), artifact=None)
    await stage.lifecycle.bring_up("new", planned, None, None)
    assert stage.optimizer.builds == [("a", False), ("new", True)]
    view = stage.view("new")
    assert (view.state, view.recipe, view.artifact) == (
        VariantState.READY,
        "r2",
        "artifact-of-new",
    )


async def test_two_are_brought_up_one_after_the_other(scene: Callable[..., Scene]) -> None:
    """One build at a time takes what the machine has."""
    stage = scene(["a"])
    await stage.lifecycle.run()
    for name in ("b", "c"):
        stage.variants.add(name)
    planned = PlannedVariant(recipe="r", chain=(), artifact=None)
    loads = (stage.lifecycle.bring_up(name, planned, None, None) for name in ("b", "c"))
    await asyncio.gather(*loads)
    states = [(name, state.value) for name, state in stage.history if name != "a"]
    first = [state for state in states if state[0] == "b" and state[1] != "pending"]
    assert states.index(("b", "ready")) < states.index(("c", "building"))
    assert [state for _, state in first] == ["building", "loading", "ready"]


async def test_taking_down_waits_for_the_engine_and_keeps_nothing(
    scene: Callable[..., Scene],
) -> None:
    """It is gone for new requests at once, and for good when its last one has ended."""
    stage = scene(["a", "b"])
    await stage.lifecycle.run()
    down = asyncio.create_task(stage.lifecycle.take_down("b"))
    await asyncio.sleep(0.01)
    assert stage.view("b").state is VariantState.UNLOADED
    detach = stage.posted[-1]
    assert isinstance(detach, Detach)
    assert (detach.variant, detach.when_idle) == ("b", True)
    assert not down.done()
    detach.gone()
    await down
    view = stage.view("b")
    assert (view.tokenizer, view.limits, view.template) == (None, None, None)
    assert view.artifact == "artifact-of-b"
