"""What may be changed while a server runs, over fakes of what builds and of what judges chains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.protocol import FieldError, PlannedVariant
from server.allowed import Allowed
from server.budget import Budget
from server.catalog import BudgetState, BudgetView, VariantState, VariantView
from server.config.fields import BudgetSection
from server.drafts import Choice, DraftMethod, Drafts
from server.engine.messages import Command, Reweigh
from server.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    OptimizerError,
    PreconditionError,
    RequestError,
    UnavailableError,
    UnknownVariantError,
)
from server.operations import Operations
from server.traffic import Shadow, Traffic
from server.variants import Variants

CHAIN = [{"quantize": {"bits": 4}}]
CONFIGS = Budget(kl_mean=0.5)
LOOKUP = Drafts(DraftMethod.PROMPT_LOOKUP, "", 8)
ASK_A = Drafts(DraftMethod.DRAFT, "a", 4, adaptive=False)


@dataclass
class Lifecycle:
    """Brings up what it is not told to fail, one step per ``go``."""

    variants: Variants
    failing: set[str] = field(default_factory=set)
    unverified: set[str] = field(default_factory=set)
    begun: list[tuple[str, PlannedVariant, Budget | None]] = field(default_factory=list)
    drafts: list[Drafts | None] = field(default_factory=list)
    of_other_tokens: set[str] = field(default_factory=set)
    taken_down: list[str] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    verified: asyncio.Event = field(default_factory=asyncio.Event)

    async def bring_up(
        self, name: str, planned: PlannedVariant, budget: Budget | None, drafts: Drafts | None
    ) -> None:
        self.drafts.append(drafts)
        self.begun.append((name, planned, budget))
        await asyncio.sleep(0.001)  # a reader has time to see each state
        self.variants.change(name, state=VariantState.BUILDING)
        await asyncio.sleep(0.001)
        await self.go.wait()
        if name in self.failing:
            self.variants.change(name, state=VariantState.FAILED, error="The disk is full.")
        elif name in self.unverified:
            view = BudgetView(state=BudgetState.UNVERIFIED, limits={})
            self.variants.change(name, state=VariantState.READY, budget=view)
            await self.verified.wait()
        else:
            self.variants.change(name, state=VariantState.READY)
        await asyncio.sleep(0)  # there is always something left to do
        self.ended.set()

    async def may_draft(self, drafter: str, planned: PlannedVariant) -> bool:
        assert planned.recipe == "r"
        await asyncio.sleep(0)
        return drafter not in self.of_other_tokens

    async def take_down(self, name: str) -> None:
        self.variants.change(name, state=VariantState.UNLOADED)
        await self.go.wait()
        self.taken_down.append(name)


@dataclass
class Stage:
    """Operations and all that they talk to."""

    operations: Operations
    variants: Variants
    lifecycle: Lifecycle
    posted: list[Command]
    added: list[str]
    planned: list[tuple[str, Sequence[Any]]]
    answer: list[Any]

    async def load(
        self,
        name: str,
        chain: Any = CHAIN,
        budget: BudgetSection | None = None,
        speculation: Choice | None = None,
    ) -> list[VariantView]:
        async with aclosing(self.operations.load(name, chain, budget, speculation)) as views:
            return [view async for view in views]

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the others work until something is so."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - what fakes do sets no asyncio.Event
                await asyncio.sleep(0)

    def state(self, name: str) -> VariantState:
        view = self.variants.get(name)
        assert view is not None
        return view.state


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Three variants that serve, and work that goes through at once."""
    variants = Variants(["a", "b", "c"], {})
    for name in variants.names():
        variants.change(name, state=VariantState.READY)
    lifecycle = Lifecycle(variants)
    lifecycle.go.set()
    posted: list[Command] = []
    added: list[str] = []
    planned: list[tuple[str, Sequence[Any]]] = []
    answer: list[Any] = [PlannedVariant(recipe="r", chain=(), artifact=None)]

    async def plan(name: str, chain: Sequence[Any]) -> Any:
        planned.append((name, chain))
        await asyncio.sleep(0)
        if isinstance(answer[0], Exception):
            raise answer[0]
        if isinstance(answer[0], asyncio.Event):
            await answer[0].wait()
            return PlannedVariant(recipe="r", chain=(), artifact=None)
        return answer[0]

    def budget(own: BudgetSection | None) -> Budget | None:
        return CONFIGS if own is None else replace(CONFIGS, kl_mean=own.kl_mean)

    operations = Operations(
        variants,
        lifecycle,
        plan,
        posted.append,
        allowed=Allowed(frozenset(), (tmp_path,)),
        chains={name: [] for name in "abc"},
        budgets={"b": Budget(kl_mean=2.0)},
        budget=budget,
        drafts={"b": LOOKUP, "c": Drafts(DraftMethod.DRAFT, "b", 8)},
        added=added.append,
    )
    yield Stage(operations, variants, lifecycle, posted, added, planned, answer)
    await operations.close()


# Loading.


async def test_a_load_shows_its_states_and_leaves_traffic(stage: Stage) -> None:
    """A new variant takes no routed traffic; each state is shown once."""
    views = await stage.load("new")
    assert [view.state.value for view in views] == ["pending", "building", "ready"]
    assert stage.variants.names() == ("a", "b", "c", "new")
    assert stage.added == ["new"]
    assert stage.variants.traffic == {}
    assert stage.planned == [("new", CHAIN)]


async def test_engine_shares_follow_the_number_of_variants(stage: Stage) -> None:
    """They are relative to how many there are: one more changes everybody's."""
    stage.operations.set_traffic({"a": 1, "b": 1}, None)
    stage.posted.clear()
    await stage.load("new")
    shares = {one.variant: one.weight for one in stage.posted if isinstance(one, Reweigh)}
    assert shares == {"a": 2.0, "b": 2.0, "c": 0.01, "new": 0.01}


async def test_a_load_that_fails_says_why_and_may_be_tried_again_at_once(stage: Stage) -> None:
    """Whoever hears of the end finds nothing in the way."""
    stage.lifecycle.failing = {"new"}
    stage.operations.set_traffic({"a": 1, "b": 1}, Shadow("c", 0.5))
    before = (stage.variants.traffic, stage.variants.shadow)
    async with aclosing(stage.operations.load("new", CHAIN, None)) as views:
        async for view in views:
            if view.state is VariantState.FAILED:
                assert view.error == "The disk is full."
                stage.lifecycle.failing = set()
                assert (await stage.load("new"))[-1].state is VariantState.READY
    assert (stage.variants.traffic, stage.variants.shadow) == before


async def test_ready_means_that_it_can_be_unloaded(stage: Stage) -> None:
    """The last message of a load is not sent before the load is over."""
    async with aclosing(stage.operations.load("new", CHAIN, None)) as views:
        async for view in views:
            if view.state is VariantState.READY:
                await stage.operations.unload("new")
    assert stage.state("new") is VariantState.UNLOADED


async def test_what_serves_before_it_is_measured_ends_its_stream(stage: Stage) -> None:
    """Measuring may take minutes; meanwhile nothing else is done to it."""
    stage.lifecycle.unverified = {"new"}
    assert (await stage.load("new"))[-1].state is VariantState.READY
    with pytest.raises(PreconditionError, match="wait for it"):
        await stage.operations.unload("new")
    stage.lifecycle.verified.set()
    await stage.lifecycle.ended.wait()


@pytest.mark.parametrize("moment", ["judging", "building"])
async def test_who_leaves_does_not_stop_the_load(stage: Stage, moment: str) -> None:
    """Neither while the chain is judged nor afterwards."""
    stage.lifecycle.go.clear()
    judged = asyncio.Event()
    if moment == "judging":
        stage.answer[0] = judged
    loading = asyncio.create_task(stage.load("new"))
    done = stage.planned if moment == "judging" else stage.lifecycle.begun
    await stage.until(lambda: done)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    judged.set()
    stage.lifecycle.go.set()
    await stage.lifecycle.ended.wait()
    assert stage.state("new") is VariantState.READY


async def test_errors_of_a_chain_are_all_told(stage: Stage) -> None:
    """Each with its remedy, and nothing is begun or remembered."""
    stage.answer[0] = (
        FieldError(path="chain[0].quantize.bits", message="Is 5.", remedy="Use 4 or 8."),
        FieldError(path="chain[1]", message="There is no stage 'x'.", remedy="Stages: prune."),
    )
    with pytest.raises(InvalidRequestError) as caught:
        await stage.load("new")
    assert str(caught.value) == (
        "chain_json: chain[0].quantize.bits: Is 5. Use 4 or 8. "
        "chain[1]: There is no stage 'x'. Stages: prune; correct it"
    )
    assert stage.variants.get("new") is None
    assert stage.lifecycle.begun == []
    stage.answer[0] = PlannedVariant(recipe="r", chain=(), artifact=None)
    with pytest.raises(InvalidRequestError, match="chain_json: is not set"):
        await stage.load("new", chain=None)


async def test_a_chain_that_cannot_be_judged_is_told_as_that(stage: Stage) -> None:
    """Not as an error of the chain, nor as a secret of ours."""
    stage.answer[0] = OptimizerError("It was killed.", remedy="Give it memory.")
    with pytest.raises(UnavailableError, match="could not be judged: It was killed"):
        await stage.load("new")
    assert stage.variants.get("new") is None


@pytest.mark.parametrize("name", ["", "A", "a b", "new\n", "../x", "routed", "x" * 64, "ü"])
async def test_names_are_checked(stage: Stage, name: str) -> None:
    """Also those that mean something else: routed traffic."""
    with pytest.raises(InvalidRequestError, match=r"^name: "):
        await stage.load(name)
    assert stage.planned == []


@pytest.mark.parametrize("state", ["ready", "building", "pending", "loading"])
async def test_a_name_that_is_taken_is_refused(stage: Stage, state: str) -> None:
    """What serves, or is on its way, is not replaced."""
    stage.variants.change("b", state=VariantState(state))
    with pytest.raises(AlreadyExistsError, match="unload it first"):
        await stage.load("b")


async def test_two_loads_of_one_name_are_one(stage: Stage) -> None:
    """Also before the first one's chain is judged."""
    first, second = await asyncio.gather(
        stage.load("new"), stage.load("new"), return_exceptions=True
    )
    assert isinstance(first, list)
    assert isinstance(second, AlreadyExistsError)
    assert len(stage.lifecycle.begun) == 1


async def test_names_outside_the_roots_are_refused_before_anything_is_asked(
    stage: Stage,
) -> None:
    """The optimizer never hears of them."""
    with pytest.raises(InvalidRequestError, match="'/etc/passwd', which lies outside"):
        await stage.load("new", [{"distill": {"substitute": "/etc/passwd"}}])
    assert stage.planned == []


async def test_there_is_an_end_to_new_variants(stage: Stage) -> None:
    """Those on their way count; a name that is there already does not."""
    for number in range(61):
        await stage.load(f"v{number}")
    with pytest.raises(PreconditionError, match="64 variants"):
        await stage.load("new")
    await stage.operations.unload("v7")
    await stage.load("v7")


@pytest.mark.parametrize(
    ("name", "sent", "kept_to"),
    [
        ("new", None, CONFIGS),
        ("new", BudgetSection(kl_mean=9), Budget(kl_mean=9)),
        ("b", None, Budget(kl_mean=2.0)),
        ("c", None, None),
        ("b", BudgetSection(kl_mean=9), Budget(kl_mean=9)),
    ],
)
async def test_the_budget_is_what_is_sent_or_what_it_had_or_the_config_s(
    stage: Stage, name: str, sent: BudgetSection | None, kept_to: Budget | None
) -> None:
    """And it stays for the next time."""
    stage.operations.set_traffic({"a": 1}, None)
    if name != "new":
        await stage.operations.unload(name)
    await stage.load(name, budget=sent)
    await stage.operations.unload(name)
    await stage.load(name, chain=None)
    assert [budget for _, _, budget in stage.lifecycle.begun] == [kept_to, kept_to]
    chains = [chain for _, chain in stage.planned]
    assert chains == [CHAIN, CHAIN]


@pytest.mark.parametrize(
    ("name", "sent", "drafts"),
    [
        ("new", None, None),
        ("new", Choice(LOOKUP), LOOKUP),
        ("new", Choice(ASK_A), ASK_A),
        ("b", None, LOOKUP),
        ("b", Choice(ASK_A), ASK_A),
        ("b", Choice(None), None),
    ],
)
async def test_drafts_are_what_is_sent_or_what_it_had(
    stage: Stage, name: str, sent: Choice | None, drafts: Drafts | None
) -> None:
    """And they stay for the next time, none of them too."""
    if name != "new":
        await stage.operations.unload(name)
    await stage.load(name, speculation=sent)
    await stage.operations.unload(name)
    await stage.load(name, chain=None)
    assert stage.lifecycle.drafts == [drafts, drafts]


@pytest.mark.parametrize(
    ("drafter", "problem", "remedy"),
    [
        ("", "is required with method draft", "Name the variant that guesses: a, c, gone"),
        ("b", "is this variant itself", "Other variants: a, c, gone"),
        ("gon", "no such variant", "Did you mean 'gone'? Other variants: a, c, gone"),
        (
            "c",
            "drafts for itself: b asks c asks b",
            "Let the smallest of them have no drafts, or look them up",
        ),
    ],
)
async def test_drafts_that_a_config_could_not_have_are_refused(
    stage: Stage, drafter: str, problem: str, remedy: str
) -> None:
    """With the config's own words, before the chain is looked at, and nothing is remembered."""
    await stage.load("gone")
    for name in ("gone", "b"):
        await stage.operations.unload(name)
    stage.planned.clear()
    wrong = Choice(Drafts(DraftMethod.DRAFT, drafter, 8))
    with pytest.raises(InvalidRequestError) as caught:
        await stage.load("b", speculation=wrong)
    path = "speculation_json: variants.b.speculation.variant"
    assert str(caught.value) == f"{path}: {problem}. {remedy}; correct it"
    assert stage.planned == []
    await stage.load("b")
    assert stage.lifecycle.drafts[-1] == LOOKUP


async def test_who_drafts_must_serve_when_it_is_asked_for(stage: Stage) -> None:
    """Else the variant would serve without, which nobody asked for; what it had is kept so."""
    asks_b = Choice(Drafts(DraftMethod.DRAFT, "b", 8))
    for name in "bc":
        await stage.operations.unload(name)
    with pytest.raises(
        PreconditionError, match=r"^speculation_json: variant 'b' does not serve: it"
    ):
        await stage.load("new", speculation=asks_b)
    await stage.load("c")
    await stage.load("b")
    await stage.load("new", speculation=asks_b)
    assert stage.lifecycle.drafts == [asks_b.drafts, LOOKUP, asks_b.drafts]


async def test_who_drafts_must_have_the_same_tokens(stage: Stage) -> None:
    """What is known before anything is loaded is told at once, and nothing comes of it."""
    stage.lifecycle.of_other_tokens = {"a"}
    with pytest.raises(InvalidRequestError) as caught:
        await stage.load("new", speculation=Choice(ASK_A))
    assert str(caught.value) == (
        "speculation_json: variants.new.speculation.variant: the tokens of the drafting variant "
        "are not this variant's. Name a variant with the same tokenizer and vocabulary; correct it"
    )
    assert stage.variants.get("new") is None
    assert stage.lifecycle.begun == []
    await stage.load("new", speculation=Choice(LOOKUP))
    assert stage.lifecycle.drafts == [LOOKUP]


async def test_drafts_of_a_chain_that_is_refused_are_not_remembered(stage: Stage) -> None:
    """Neither is anything else of it."""
    await stage.operations.unload("b")
    stage.answer[0] = (FieldError(path="chain[0]", message="No."),)
    with pytest.raises(InvalidRequestError):
        await stage.load("b", speculation=Choice(ASK_A))
    stage.answer[0] = PlannedVariant(recipe="r", chain=(), artifact=None)
    await stage.load("b")
    assert stage.lifecycle.drafts == [LOOKUP]


async def test_what_another_artifact_was_is_forgotten_when_a_load_begins(stage: Stage) -> None:
    """No old error, figure or artifact beside a new state."""
    stage.lifecycle.failing = {"new"}
    await stage.load("new")
    stage.variants.change("new", artifact="old", drafts=LOOKUP)
    stage.lifecycle.failing = set()
    views = await stage.load("new")
    assert [(view.error, view.artifact, view.drafts) for view in views] == [(None, None, None)] * 3


# Unloading.


async def test_an_unloaded_variant_loads_again_with_its_own_chain(stage: Stage) -> None:
    """Nothing has to be sent twice."""
    await stage.load("new")
    await stage.operations.unload("new")
    assert stage.lifecycle.taken_down == ["new"]
    assert (await stage.load("new", chain=None))[-1].state is VariantState.READY


@pytest.mark.parametrize(
    ("weights", "shadow", "name", "words"),
    [
        ({}, None, "a", "takes routed traffic"),
        ({"b": 1, "a": 0}, None, "b", "takes routed traffic"),
        ({"a": 1}, Shadow("b", 1), "b", "is the shadow"),
        ({"a": 1}, None, "nobody", "is unknown"),
    ],
)
async def test_what_is_needed_is_not_unloaded(
    stage: Stage, weights: dict[str, float], shadow: Shadow | None, *, name: str, words: str
) -> None:
    """Traffic is moved first, by whoever wants it moved."""
    stage.operations.set_traffic(weights, shadow)
    with pytest.raises(RequestError, match=words):
        await stage.operations.unload(name)
    assert stage.lifecycle.taken_down == []


async def test_the_default_may_go_when_traffic_goes_elsewhere(stage: Stage) -> None:
    """And with weight 0 nothing goes to it either."""
    stage.operations.set_traffic({"a": 0, "b": 1}, None)
    await stage.operations.unload("a")
    assert stage.state("a") is VariantState.UNLOADED
    with pytest.raises(PreconditionError, match="it is unloaded"):
        await stage.operations.unload("a")


async def test_while_it_drains_nothing_takes_its_place(stage: Stage) -> None:
    """Also when whoever wanted it unloaded has left: its streams still run."""
    stage.lifecycle.go.clear()
    unloading = asyncio.create_task(stage.operations.unload("b"))
    await stage.until(lambda: stage.state("b") is VariantState.UNLOADED)
    unloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unloading
    with pytest.raises(AlreadyExistsError):
        await stage.load("b")
    stage.lifecycle.go.set()
    await stage.until(lambda: stage.lifecycle.taken_down)
    await asyncio.sleep(0)
    assert (await stage.load("b"))[-1].state is VariantState.READY


# Traffic.


async def test_traffic_is_set_as_a_whole_and_the_engine_follows(stage: Stage) -> None:
    """Weights in every view, shares of engine time by weight, and a little for who is named."""
    shadow = Shadow("c", 0.25)
    assert stage.operations.set_traffic({"a": 3, "b": 1}, shadow) == Traffic(
        {"a": 3, "b": 1}, shadow
    )
    assert [view.weight for view in stage.variants.views] == [3, 1, 0]
    assert stage.variants.shadow == shadow
    assert stage.posted == [Reweigh("a", 2.25), Reweigh("b", 0.75), Reweigh("c", 0.01)]
    stage.operations.set_traffic({}, None)
    assert stage.variants.shadow is None
    assert stage.posted[3:] == [Reweigh(name, 1.0) for name in "abc"]


@pytest.mark.parametrize(
    ("weights", "shadow", "error", "words"),
    [
        ({"a": -1}, None, InvalidRequestError, r"^weights\[a\]: -1 is out of bounds"),
        ({"a": float("nan")}, None, InvalidRequestError, r"^weights\[a\]: nan"),
        ({"a": float("inf")}, None, InvalidRequestError, r"^weights\[a\]: inf"),
        ({"a": 0}, None, InvalidRequestError, "^weights: are all 0"),
        ({"x": 0, "a": 1}, None, UnknownVariantError, "use one of: a, b, c"),
        ({"a": 1}, Shadow("x", 1), UnknownVariantError, "'x' is unknown"),
        ({"a": 1}, Shadow("b", 0), InvalidRequestError, "^shadow.fraction: 0 is out"),
        ({"a": 1}, Shadow("b", 1.5), InvalidRequestError, "^shadow.fraction: 1.5 is out"),
        ({"a": 1}, Shadow("b", float("nan")), InvalidRequestError, "^shadow.fraction: nan"),
        ({"gone": 1}, None, PreconditionError, "it is unloaded; load it first"),
        ({"a": 1}, Shadow("gone", 1), PreconditionError, "it is unloaded; load it first"),
    ],
)
async def test_wrong_traffic_changes_nothing(
    stage: Stage,
    weights: dict[str, float],
    shadow: Shadow | None,
    *,
    error: type[Exception],
    words: str,
) -> None:
    """Not even for a moment: what is wrong is found before anything is set."""
    await stage.load("gone")
    await stage.operations.unload("gone")
    stage.operations.set_traffic({"b": 1}, None)
    stage.posted.clear()
    with pytest.raises(error, match=words):
        stage.operations.set_traffic(weights, shadow)
    assert stage.variants.traffic == {"b": 1}
    assert stage.posted == []


async def test_no_weights_need_a_default_that_serves(stage: Stage) -> None:
    """Else every request would go to who is not there."""
    stage.operations.promote("b")
    await stage.operations.unload("a")
    with pytest.raises(PreconditionError, match="variant 'a' does not serve"):
        stage.operations.set_traffic({}, None)
    assert stage.variants.traffic == {"b": 1.0}


async def test_promote_and_roll_back(stage: Stage) -> None:
    """Several changes, and back again to what there was at first."""
    stage.operations.set_traffic({"a": 9, "b": 1}, Shadow("c", 0.5))
    assert stage.operations.promote("c") == Traffic({"c": 1.0}, None)
    assert stage.operations.roll_back() == Traffic({"a": 9, "b": 1}, Shadow("c", 0.5))
    assert stage.operations.roll_back() == Traffic()
    with pytest.raises(PreconditionError, match="nothing to go back to"):
        stage.operations.roll_back()
    assert stage.variants.traffic == {}


async def test_rolling_back_never_leads_to_who_is_gone(stage: Stage) -> None:
    """The first traffic was the default's alone: that is no more, and must not come back."""
    stage.operations.promote("b")
    stage.operations.set_traffic({"b": 1, "c": 1}, None)
    stage.operations.promote("c")
    await stage.operations.unload("a")
    await stage.operations.unload("b")
    assert stage.operations.roll_back() == Traffic({"c": 1})
    with pytest.raises(PreconditionError):
        stage.operations.roll_back()
    assert stage.variants.traffic == {"c": 1}


async def test_rolling_back_passes_over_who_failed(stage: Stage) -> None:
    """The engine has lost it; nobody has unloaded it."""
    stage.operations.promote("b")
    stage.operations.promote("c")
    stage.variants.change("b", state=VariantState.FAILED)
    assert stage.operations.roll_back() == Traffic()


# Stopping.


async def test_a_server_that_stops_ends_loads_and_begins_none(stage: Stage) -> None:
    """Whoever waits hears of it, whether its chain was judged or not."""
    stage.lifecycle.go.clear()
    building = asyncio.create_task(stage.load("one"))
    await stage.until(lambda: stage.variants.get("one") is not None)
    await stage.until(lambda: stage.state("one") is VariantState.BUILDING)
    stage.answer[0] = asyncio.Event()
    judging = asyncio.create_task(stage.load("two"))
    await stage.until(lambda: len(stage.planned) == 2)
    unloading = asyncio.create_task(stage.operations.unload("c"))
    await stage.until(lambda: stage.state("c") is VariantState.UNLOADED)
    await stage.operations.close()
    assert (await building)[-1].state is VariantState.BUILDING
    for task in (judging, unloading):
        with pytest.raises(UnavailableError, match="stopping"):
            await task
    calls: list[Callable[[], Any]] = [
        lambda: stage.load("three"),
        lambda: stage.operations.unload("b"),
    ]
    for call in calls:
        with pytest.raises(UnavailableError, match="stopping"):
            await call()
