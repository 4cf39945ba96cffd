"""A variant over its budget is refused, cut back, or served with a warning; before or after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from artifacts.digest import sha256_file
from artifacts.manifest import Manifest, Quality, StageRecord
from artifacts.protocol import (
    BuildEvent,
    BuildRequest,
    Built,
    JudgeRequest,
    PlannedVariant,
    PlanRequest,
    PlanResponse,
    Progress,
    Texts,
)
from server.budget import Budget, OnBreach, When
from server.catalog import BudgetState, VariantLimits, VariantState, VariantView
from server.engine.messages import Attach, Command, Detach
from server.errors import OptimizerError
from server.lifecycle import Lifecycle
from server.variants import Variants

ISA = "x86_64-avx2"
LIMITS = VariantLimits(max_length=64, slots=2, kv_budget_tokens=100, max_waiting=1)
PRUNE: dict[str, Any] = {"prune": {"amount": 0.5}}
RECOVER: dict[str, Any] = {"distill": {"method": "recover"}}
QUANTIZE: dict[str, Any] = {"quantize": {"bits": 4}}
CHAIN = (PRUNE, QUANTIZE)
REFUSE, ROLLBACK, WARN = OnBreach.REFUSE, OnBreach.ROLLBACK, OnBreach.WARN
BEFORE, AFTER = When.BEFORE_SERVING, When.AFTER_SERVING


@dataclass
class Workshop:
    """Optimizer and store in one: an artifact is called like the stages that made it."""

    manifest: Manifest
    kl: Mapping[str, float]
    isa: str = ISA
    text_sha256: str | None = None
    stored: set[str] = field(default_factory=set)
    unmeasured: set[str] = field(default_factory=set)
    streaming: set[str] = field(default_factory=set)
    failure: OptimizerError | None = None
    during: Callable[[], object] = lambda: None
    builds: list[tuple[str, bool]] = field(default_factory=list)
    judged: list[tuple[str, bool]] = field(default_factory=list)

    async def plan(self, request: PlanRequest) -> PlanResponse:
        planned = {name: self.planned(chain) for name, chain in request.variants.items()}
        return PlanResponse(variants=planned)

    def planned(self, chain: Any) -> PlannedVariant:
        name = called(chain)
        artifact = name if name in self.stored else None
        return PlannedVariant(
            recipe=f"recipe of {name}",
            chain=tuple(chain),
            artifact=artifact,
            streams=name in self.streaming,
        )

    async def build(
        self,
        request: BuildRequest,
        observe: Callable[[BuildEvent], None],
        *,
        background: bool,  # noqa: ARG002 - the protocol's
    ) -> Built:
        name = called(request.chain)
        assert request.recipe == f"recipe of {name}"
        observe(Progress(stage="export", fraction=0.5))
        self.builds.append((name, request.measure))
        if not request.measure:
            self.unmeasured.add(name)
        return Built(artifact=name)

    async def judge(
        self, request: JudgeRequest, observe: Callable[[BuildEvent], None], *, background: bool
    ) -> Quality:
        self.judged.append((request.artifact, background))
        observe(Progress(stage="measure", fraction=0.5))
        await asyncio.sleep(0)
        self.during()
        if self.failure is not None:
            raise self.failure
        return self.figures(self.kl[request.artifact], isa=ISA)

    def open(self, artifact: str, *, verify: bool = False) -> Any:  # noqa: ARG002 - the store's
        stages = () if artifact == "original" else tuple(artifact.split("+"))
        records = [StageRecord(stage="export", form="onnx", seconds=0, size_bytes=9)]
        records += [StageRecord(stage=one, form="onnx", seconds=0, size_bytes=9) for one in stages]
        parts = ["original", *("+".join(stages[:n]) for n in range(1, len(stages) + 1))]
        if artifact not in self.unmeasured:
            records = [
                record.model_copy(update={"quality": self.figures(self.kl.get(part, 0.0))})
                for record, part in zip(records, parts, strict=True)
            ]
        return SimpleNamespace(
            artifact=artifact,
            manifest=self.manifest.model_copy(update={"lineage": tuple(records)}),
        )

    def figures(self, kl: float, **more: Any) -> Quality:
        about = {"isa": self.isa, "text_sha256": self.text_sha256, **more}
        return Quality(
            kl_mean=kl, kl_p99=kl, top1_agreement=1.0, documents=1, positions=100, **about
        )


def called(chain: Any) -> str:
    return "+".join(name for stage in chain for name in stage) or "original"


@dataclass
class Scene:
    lifecycle: Lifecycle
    variants: Variants
    workshop: Workshop
    posted: list[Command]
    described: list[tuple[str, float | None]]
    history: list[tuple[str, str, str]]

    async def run(self) -> VariantView:
        """Bring all up; gives the view of the variant that has the budget."""
        await self.lifecycle.run()
        return self.view

    @property
    def view(self) -> VariantView:
        view = self.variants.get("lean")
        assert view is not None
        return view

    @property
    def served(self) -> list[str]:
        """What the engine was told about the variant, in order."""
        said = (c for c in self.posted if getattr(c, "variant", "") == "lean")
        return [c.session if isinstance(c, Attach) else "gone" for c in said]  # type: ignore[misc]


@pytest.fixture
def scene(manifest: Manifest) -> Callable[..., Scene]:
    def make(
        budget: Budget | None,
        *,
        chain: tuple[dict[str, Any], ...] = CHAIN,
        kl: Mapping[str, float] | None = None,
        serves: bool = True,
        evaluation: str | None = None,
        **workshop: Any,
    ) -> Scene:
        shop = Workshop(manifest, kl or {"prune": 0.1, "prune+quantize": 0.5}, **workshop)
        variants = Variants(["lean", "other"], {}, clock=lambda: 5.0)
        history: list[tuple[str, str, str]] = []

        def remember(view: VariantView) -> None:
            budget_state = "" if view.budget is None else view.budget.state.value
            entry = (view.name, view.state.value, budget_state)
            if history[-1:] != [entry]:
                history.append(entry)

        variants.watch(remember)
        posted: list[Command] = []
        described: list[tuple[str, float | None]] = []

        def post(command: Command) -> None:
            posted.append(command)
            if isinstance(command, Detach):
                command.gone()

        def load(stored: Any, **_: Any) -> Any:
            return SimpleNamespace(
                session=stored.artifact,
                rebuild=None,
                tokenizer="tokenizer",
                template=None,
                drafting=None,
                limits=LIMITS,
                load_s=0.0,
                warm_up_s=0.0,
            )

        def describe(_: str, artifact: str, told: Manifest) -> None:
            described.append((artifact, told.quality and told.quality.kl_mean))

        lifecycle = Lifecycle(
            variants=variants,
            planned={"lean": shop.planned(chain), "other": shop.planned(())},
            request=lambda name, planned: BuildRequest(
                model="m",
                variant=name,
                chain=planned.chain,
                recipe=planned.recipe,
                store="/s",
                evaluation=None if evaluation is None else Texts(text=evaluation),
            ),
            optimizer=shop,
            store=shop,  # type: ignore[arg-type]
            load=load if serves else None,
            post=post,
            record=SimpleNamespace(took=lambda *_: None, describe=describe),
            step_tokens=32,
            budgets={} if budget is None else {"lean": budget},
            isa=ISA,
            clock=lambda: 5.0,
        )
        return Scene(lifecycle, variants, shop, posted, described, history)

    return make


Make = Callable[..., Scene]


def state(view: VariantView) -> tuple[VariantState, BudgetState | None]:
    return view.state, view.budget and view.budget.state


# Before serving.


@pytest.mark.parametrize("on_breach", OnBreach)
@pytest.mark.parametrize("when", When)
async def test_just_wide_enough_is_served(scene: Make, on_breach: OnBreach, when: When) -> None:
    """The twin of all below: at the limit itself nothing follows."""
    stage = scene(Budget(kl_mean=0.5, on_breach=on_breach, when=when))
    view = await stage.run()
    assert state(view) == (VariantState.READY, BudgetState.WITHIN)
    assert view.budget is not None
    assert (view.budget.limits, view.budget.notes) == ({"kl_mean": 0.5}, ())
    assert stage.served == ["prune+quantize"]
    assert stage.described[-1][1] == (0.5 if when is AFTER else 0.0)


async def test_a_refused_variant_fails_and_says_why(scene: Make) -> None:
    """Limit, figure, stage and remedy; the artifact stays known, and the others serve."""
    stage = scene(Budget(kl_mean=0.3, kl_p99=0.4))
    view = await stage.run()
    assert state(view) == (VariantState.FAILED, BudgetState.EXCEEDED)
    assert view.error is not None
    for words in (
        "kl_mean is 0.5 and may be at most 0.3; the stage that cost most is quantize",
        "kl_p99 is 0.5 and may be at most 0.4",
        "budget.on_breach to rollback or warn",
    ):
        assert words in view.error
    assert (view.artifact, stage.served) == ("prune+quantize", [])
    other = stage.variants.get("other")
    assert other is not None
    assert state(other) == (VariantState.READY, None)


async def test_a_refused_variant_in_the_store_is_not_built_again(scene: Make) -> None:
    """Every start judges anew what lies there; a changed limit needs no build."""
    stage = scene(Budget(kl_mean=0.3), stored={"prune+quantize"})
    assert (await stage.run()).state is VariantState.FAILED
    assert [name for name, _ in stage.workshop.builds] == ["original"]


async def test_a_rollback_serves_the_longest_part_that_keeps_to_the_budget(scene: Make) -> None:
    """Under the same name, and it tells what was left out and why."""
    stage = scene(Budget(kl_mean=0.3, on_breach=ROLLBACK))
    with capture_logs() as said:
        view = await stage.run()
    assert state(view) == (VariantState.READY, BudgetState.WITHIN)
    assert view.budget is not None
    assert view.budget.rolled_back_stages == 1
    assert view.budget.notes[0].startswith("kl_mean is 0.5 and may be at most 0.3")
    assert (view.artifact, view.recipe) == ("prune", "recipe of prune")
    assert view.chain == CHAIN
    assert stage.served == ["prune"]
    assert "rolling back" in [entry["event"] for entry in said]


@pytest.mark.parametrize(
    ("chain", "kl", "served", "left_out"),
    [
        ((PRUNE, QUANTIZE), {"prune": 0.9, "prune+quantize": 0.8}, "original", 2),
        ((PRUNE, QUANTIZE, QUANTIZE), {"prune+quantize+quantize": 0.9}, "prune+quantize", 1),
        ((PRUNE, RECOVER), {"prune+distill": 0.9}, "original", 2),
        ((PRUNE, RECOVER, QUANTIZE), {"prune+distill+quantize": 0.9}, "prune+distill", 1),
    ],
)
async def test_a_rollback_goes_as_far_as_it_must(
    scene: Make, *, chain: Any, kl: Any, served: str, left_out: int
) -> None:
    """A prune without its recover is never a stop, however good its figures."""
    budget = Budget(kl_mean=0.3, on_breach=ROLLBACK)
    stage = scene(budget, chain=chain, kl={"prune": 0.0, "prune+quantize": 0.0} | kl)
    view = await stage.run()
    assert (stage.served, view.artifact) == ([served], served)
    assert view.budget is not None
    assert view.budget.rolled_back_stages == left_out


async def test_a_rollback_uses_what_the_store_holds(scene: Make) -> None:
    """Neither the chain nor the part of it is built again."""
    stage = scene(Budget(kl_mean=0.3, on_breach=ROLLBACK), stored={"prune+quantize", "prune"})
    await stage.run()
    assert stage.served == ["prune"]
    assert [name for name, _ in stage.workshop.builds] == ["original"]


async def test_the_original_serves_even_over_a_budget_that_rolls_back(scene: Make) -> None:
    """There is nothing left to leave out; it says so."""
    stage = scene(Budget(size_bytes=1, on_breach=ROLLBACK))
    view = await stage.run()
    assert state(view) == (VariantState.READY, BudgetState.EXCEEDED)
    assert stage.served == ["original"]
    assert view.budget is not None
    assert len(view.budget.notes) == 2


async def test_a_rollback_that_cannot_be_planned_costs_the_variant(scene: Make) -> None:
    """Its error is the variant's, and the others serve."""
    stage = scene(Budget(kl_mean=0.3, on_breach=ROLLBACK))

    async def refuse(_: PlanRequest) -> PlanResponse:
        error = {"path": "model", "message": "It is gone.", "remedy": "Look."}
        return PlanResponse(errors=(error,))

    stage.workshop.plan = refuse  # type: ignore[method-assign]
    view = await stage.run()
    assert (view.state, view.error) == (VariantState.FAILED, "model: It is gone. Look.")


async def test_a_warning_serves_all_the_same(scene: Make) -> None:
    """In the log and in the view."""
    stage = scene(Budget(kl_mean=0.3, on_breach=WARN))
    with capture_logs() as said:
        view = await stage.run()
    assert state(view) == (VariantState.READY, BudgetState.EXCEEDED)
    assert view.budget is not None
    assert "kl_mean is 0.5" in view.budget.notes[0]
    assert stage.served == ["prune+quantize"]
    assert [entry["variant"] for entry in said if entry["event"] == "over budget"] == ["lean"]


# Whether figures can be judged on.


@pytest.mark.parametrize(
    ("doubtful", "asked"),
    [
        ({}, []),
        ({"isa": "x86_64-avx512-vnni"}, [("prune+quantize", False)]),
        ({"unmeasured": {"prune+quantize"}}, [("prune+quantize", False)]),
    ],
)
async def test_worthless_figures_are_measured_before_they_are_judged(
    scene: Make, doubtful: dict[str, Any], asked: list[Any]
) -> None:
    """Another class of processor rounds otherwise; what was never measured is not within."""
    stage = scene(Budget(kl_mean=0.3), stored={"prune+quantize"}, **doubtful)
    view = await stage.run()
    assert stage.workshop.judged == asked
    assert state(view) == (VariantState.FAILED, BudgetState.EXCEEDED)
    assert view.manifest is not None
    assert view.manifest.quality is not None
    assert view.manifest.quality.isa == ISA


async def test_a_size_is_judged_without_measuring(scene: Make) -> None:
    """It does not depend on the processor."""
    stage = scene(Budget(size_bytes=1), stored={"prune+quantize"}, isa="other")
    assert (await stage.run()).state is VariantState.FAILED
    assert stage.workshop.judged == []


@pytest.mark.parametrize("is_same", [True, False])
async def test_figures_of_another_text_are_made_anew(
    scene: Make, tmp_path: Any, *, is_same: bool
) -> None:
    """The budget is about the text that the config names."""
    text = tmp_path / "text.txt"
    text.write_text("what is measured on by now")
    digest = sha256_file(text) if is_same else "0" * 64
    stage = scene(
        Budget(kl_mean=1), evaluation=str(text), stored={"prune+quantize"}, text_sha256=digest
    )
    await stage.run()
    assert bool(stage.workshop.judged) is not is_same


@pytest.mark.parametrize(
    ("on_breach", "expected"),
    [
        (REFUSE, (VariantState.FAILED, None)),
        (ROLLBACK, (VariantState.FAILED, None)),
        (WARN, (VariantState.READY, BudgetState.UNVERIFIED)),
    ],
)
async def test_what_cannot_be_measured_serves_only_where_nothing_would_follow(
    scene: Make, on_breach: OnBreach, expected: Any
) -> None:
    """A budget that nobody can check is not kept."""
    failure = OptimizerError("The original cannot be had.")
    budget = Budget(kl_mean=1, on_breach=on_breach)
    stage = scene(budget, stored={"prune+quantize"}, isa="other", failure=failure)
    view = await stage.run()
    assert state(view) == expected
    told = view.error or (view.budget and view.budget.notes[0])
    assert told == "The original cannot be had."
    assert len(stage.workshop.judged) == 1


# After serving.


async def test_it_serves_unverified_until_all_are_up_and_then_is_judged(scene: Make) -> None:
    """It is built unmeasured, and measured beside what is served."""
    stage = scene(Budget(kl_mean=1, when=AFTER))
    await stage.run()
    assert stage.workshop.builds[0] == ("prune+quantize", False)
    assert stage.workshop.judged == [("prune+quantize", True)]
    assert stage.history == [
        ("lean", "pending", ""),
        ("other", "pending", ""),
        ("lean", "building", ""),
        ("lean", "loading", ""),
        ("lean", "loading", "unverified"),
        ("lean", "ready", "unverified"),
        ("other", "building", ""),
        ("other", "loading", ""),
        ("other", "ready", ""),
        ("lean", "ready", "within"),
    ]
    assert stage.described == [("prune+quantize", None), ("original", 0.0), ("prune+quantize", 0.5)]


async def test_after_serving_a_breach_withdraws(scene: Make) -> None:
    """Those that run may finish; the variant fails with its reason."""
    stage = scene(Budget(kl_mean=0.3, when=AFTER))
    view = await stage.run()
    assert state(view) == (VariantState.FAILED, BudgetState.EXCEEDED)
    assert "kl_mean is 0.5" in (view.error or "")
    assert stage.served == ["prune+quantize", "gone"]
    (detach,) = (command for command in stage.posted if isinstance(command, Detach))
    assert detach.when_idle


async def test_after_serving_a_warning_leaves_it_serving(scene: Make) -> None:
    """As before serving."""
    stage = scene(Budget(kl_mean=0.3, on_breach=WARN, when=AFTER))
    assert state(await stage.run()) == (VariantState.READY, BudgetState.EXCEEDED)
    assert stage.served == ["prune+quantize"]


async def test_after_serving_a_rollback_takes_its_place(scene: Make) -> None:
    """The shorter chain is measured before it serves: nobody is deceived twice."""
    stage = scene(Budget(kl_mean=0.3, on_breach=ROLLBACK, when=AFTER))
    view = await stage.run()
    assert state(view) == (VariantState.READY, BudgetState.WITHIN)
    assert stage.served == ["prune+quantize", "gone", "prune"]
    assert ("prune", True) in stage.workshop.builds
    states = [one for name, *one in stage.history if name == "lean"]
    after = states[states.index(["ready", "unverified"]) + 1 :]
    assert after == [
        ["ready", "exceeded"],
        ["pending", "exceeded"],
        ["building", "exceeded"],
        ["loading", "exceeded"],
        ["loading", "within"],
        ["ready", "within"],
    ]


async def test_a_replacement_waits_for_those_that_run(scene: Make) -> None:
    """Attaching at once would cut their streams."""
    stage = scene(Budget(kl_mean=0.3, on_breach=ROLLBACK, when=AFTER))
    detached: list[Detach] = []
    object.__setattr__(
        stage.lifecycle,
        "post",
        lambda command: (detached if isinstance(command, Detach) else stage.posted).append(command),
    )
    running = asyncio.create_task(stage.lifecycle.run())
    async with asyncio.timeout(10):
        while not detached:  # noqa: ASYNC110 - the fake sends no event
            await asyncio.sleep(0.001)
    for _ in range(20):
        await asyncio.sleep(0)
    assert stage.view.state is VariantState.PENDING
    assert stage.served == ["prune+quantize"]
    detached[0].gone()
    await running
    assert stage.served == ["prune+quantize", "prune"]


async def test_figures_that_are_there_are_judged_before_serving(scene: Make) -> None:
    """Putting off what costs nothing would serve what is known to be bad."""
    stage = scene(Budget(kl_mean=0.3, when=AFTER), stored={"prune+quantize"})
    assert (await stage.run()).state is VariantState.FAILED
    assert stage.served == []
    assert stage.workshop.judged == []


async def test_what_cannot_be_judged_later_goes_on_unverified(scene: Make) -> None:
    """Who serves first prefers an answer to certainty; the view says what is missing."""
    failure = OptimizerError("It was killed.", remedy="Give it memory.")
    stage = scene(Budget(kl_mean=0.3, when=AFTER), failure=failure)
    view = await stage.run()
    assert state(view) == (VariantState.READY, BudgetState.UNVERIFIED)
    assert view.budget is not None
    assert view.budget.notes == ("It was killed. Give it memory.",)
    assert stage.served == ["prune+quantize"]


async def test_a_variant_that_was_lost_meanwhile_stays_lost(scene: Make) -> None:
    """What the engine said of it is not overwritten by a verdict."""
    stage = scene(Budget(kl_mean=1, when=AFTER))
    lost = {"state": VariantState.FAILED, "error": "The model could not be loaded again."}
    stage.workshop.during = lambda: stage.variants.change("lean", **lost)
    view = await stage.run()
    assert state(view) == (VariantState.FAILED, BudgetState.UNVERIFIED)
    assert view.error == lost["error"]


async def test_building_only_judges_before_it_says_that_all_is_well(scene: Make) -> None:
    """``build`` serves nothing, so there is no after."""
    stage = scene(Budget(kl_mean=0.3, when=AFTER), serves=False)
    view = await stage.run()
    assert stage.workshop.builds[0] == ("prune+quantize", True)
    assert view.state is VariantState.FAILED


# Without a limit that asks for figures.

STREAMED: dict[str, Any] = {"chain": (QUANTIZE,), "kl": {"quantize": 0.2}}


@pytest.mark.parametrize("budget", [None, Budget(size_bytes=1 << 40)])
async def test_what_streams_serves_before_it_is_measured(
    scene: Make, budget: Budget | None
) -> None:
    """Its figures come when all are up, and nothing follows from them."""
    stage = scene(budget, streaming={"quantize"}, **STREAMED)
    unmeasured: list[bool] = []
    stage.variants.watch(lambda view: unmeasured.append(view.is_unmeasured))
    view = await stage.run()
    assert stage.workshop.builds[0] == ("quantize", False)
    assert stage.workshop.judged == [("quantize", True)]
    assert stage.served == ["quantize"]
    assert stage.described == [("quantize", None), ("original", 0.0), ("quantize", 0.2)]
    assert view.manifest is not None
    assert view.manifest.quality is not None
    assert True in unmeasured
    assert not view.is_unmeasured
    expected = None if budget is None else BudgetState.WITHIN
    assert state(view) == (VariantState.READY, expected)


async def test_a_budget_before_serving_is_judged_before_serving(scene: Make) -> None:
    """However quick the build would be: nobody is served what is over it."""
    stage = scene(Budget(kl_mean=0.1), streaming={"quantize"}, **STREAMED)
    view = await stage.run()
    assert stage.workshop.builds[0] == ("quantize", True)
    assert state(view) == (VariantState.FAILED, BudgetState.EXCEEDED)
    assert stage.served == []


async def test_what_does_not_stream_is_measured_as_it_is_built(scene: Make) -> None:
    """Putting that off would spare little of what its build takes."""
    stage = scene(None)
    await stage.run()
    assert stage.workshop.builds[0] == ("prune+quantize", True)
    assert stage.workshop.judged == []


async def test_building_only_measures_what_would_stream(scene: Make) -> None:
    """Its caller waits for figures."""
    stage = scene(None, streaming={"quantize"}, serves=False, **STREAMED)
    await stage.run()
    assert stage.workshop.builds[0] == ("quantize", True)


async def test_what_is_loaded_later_is_measured_first(scene: Make) -> None:
    """Whoever loads it decides by its figures, and may take it down at once."""
    stage = scene(None, streaming={"quantize"}, **STREAMED)
    planned = stage.workshop.planned((QUANTIZE,))
    assert planned.streams
    await stage.lifecycle.bring_up("lean", planned, None, None)
    assert stage.workshop.builds == [("quantize", True)]


@pytest.mark.parametrize("serves", [True, False])
async def test_figures_that_never_came_are_taken_at_the_next_start(
    scene: Make, *, serves: bool
) -> None:
    """The server may have ended while it measured; a build alone takes them too."""
    stage = scene(None, stored={"quantize"}, unmeasured={"quantize"}, serves=serves, **STREAMED)
    view = await stage.run()
    assert stage.workshop.builds == [("original", True)]
    assert [artifact for artifact, _ in stage.workshop.judged] == ["quantize"]
    assert not view.is_unmeasured


async def test_what_cannot_be_measured_goes_on_serving(scene: Make) -> None:
    """And shows as unmeasured."""
    failure = OptimizerError("The original cannot be had.")
    stage = scene(None, streaming={"quantize"}, failure=failure, **STREAMED)
    with capture_logs() as logs:
        view = await stage.run()
    assert view.is_unmeasured
    assert state(view) == (VariantState.READY, None)
    assert any(line["event"] == "cannot be measured" for line in logs)


async def test_what_was_unloaded_meanwhile_keeps_no_figures(scene: Make) -> None:
    """What is known of it then is somebody else's to say."""
    stage = scene(None, streaming={"quantize"}, **STREAMED)
    gone = {"state": VariantState.UNLOADED, "manifest": None}
    stage.workshop.during = lambda: stage.variants.change("lean", **gone)
    view = await stage.run()
    assert (view.state, view.manifest) == (VariantState.UNLOADED, None)
