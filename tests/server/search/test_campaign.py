"""A whole search over formulas: what is tried, what is spared, what is said in the end."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from server.config.errors import ConfigError
from server.config.sources import load
from server.errors import OptimizerError
from server.search import report
from server.search.campaign import Campaign, Outcome
from server.search.evaluation import Evaluator
from server.search.finals import Contender, Verdict, verdict
from server.search.front import dominates
from server.search.objectives import chosen
from server.search.preparation import built_in_space, prepare, study_name
from server.search.records import COUNTED, Kind, Record
from server.search.search import Ending, Status
from server.search.spaces import split_open
from tests.server.search.synthetic import (
    HAND_WRITTEN,
    FormulaOptimizer,
    FormulaProber,
    Quiet,
    config_for,
    figures,
    open_study,
    prepared_for,
    search,
)

SEARCH = {"trials": 8, "rounds": 3}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return str(tmp_path / "study.log")


def kinds(outcome: Outcome) -> Counter[Kind]:
    return Counter(record.result.kind for record in outcome.records)


async def test_the_front_is_what_the_slow_way_finds(store: Path, storage: str) -> None:
    """Every pair of what was measured, hand-written variants included, is compared."""
    config = config_for(store, search={**SEARCH, "trials": 20, "finalists": 32})
    outcome = await search(config, storage, FormulaOptimizer(store))
    assert outcome.ending is Ending.DONE
    objectives = chosen(config.search.objectives)
    chains = {"original": [], "hand": HAND_WRITTEN} | {
        f"search-{one.number}": one.value
        for one in outcome.records
        if one.result.kind is Kind.MEASURED
    }
    losses = {
        name: [one.loss(figures(chain)) for one in objectives] for name, chain in chains.items()
    }
    expected = {
        name for name, one in losses.items() if not any(dominates(o, one) for o in losses.values())
    }
    assert outcome.verdict is not None
    assert set(outcome.verdict.front) == expected
    assert set(outcome.verdict.added) <= expected - {"original", "hand"}
    assert outcome.verdict.added


async def test_what_breaks_the_budget_is_neither_timed_nor_reported(
    store: Path, storage: str
) -> None:
    """The cheap figure is known first."""
    config = config_for(store, search=SEARCH, budget={"kl_mean": 0.09})
    prober = FormulaProber()
    outcome = await search(config, storage, FormulaOptimizer(store), prober)
    assert kinds(outcome)[Kind.OVER_BUDGET] > 0
    assert sum(count for kind, count in kinds(outcome).items() if kind in COUNTED) == 8
    assert outcome.verdict is not None
    for record in outcome.records:
        is_over = bool(record.value) and figures(record.value)["kl_mean"] > 0.09
        if record.result.kind is Kind.OVER_BUDGET:
            assert is_over
            assert "kl_mean is" in record.result.reason
            assert str(record.value) not in [chain for chain, _ in prober.timed]
        else:
            assert not is_over or record.result.kind in {Kind.REFUSED, Kind.FAILED}
    assert all(one.measures["kl_mean"] <= 0.09 for one in outcome.verdict.contenders)


async def test_a_hand_written_variant_over_its_budget_is_shown_and_not_compared_with(
    store: Path, storage: str
) -> None:
    """It could not be served, so nothing needs to beat it."""
    hand = {"chain": HAND_WRITTEN, "budget": {"kl_mean": 0.01}}
    space = [{"squeeze": {"x": {"choice": [0.5]}, "y": {"choice": [1, 2]}}}]
    config = config_for(store, search=SEARCH, variants={"hand": hand, "lean": space})
    outcome = await search(config, storage, FormulaOptimizer(store))
    assert outcome.ending is Ending.EXHAUSTED
    assert outcome.verdict is not None
    assert [one.is_within for one in outcome.verdict.contenders] == [False, True, True]
    assert "hand" not in outcome.verdict.front


async def test_no_chain_is_built_or_timed_twice(store: Path, storage: str) -> None:
    """A small space is searched to its end; the hand-written point in it comes for nothing."""
    space = [{"squeeze": {"x": {"choice": [0.25, 0.5, 0.25001]}, "y": {"choice": [3, 7]}}}]
    config = config_for(store, search=SEARCH, variants={"hand": HAND_WRITTEN, "lean": space})
    optimizer, prober = FormulaOptimizer(store), FormulaProber()
    outcome = await search(config, storage, optimizer, prober)
    assert outcome.ending is Ending.EXHAUSTED
    assert kinds(outcome)[Kind.MEASURED] == 2
    assert kinds(outcome)[Kind.FAILED] == 3
    assert kinds(outcome)[Kind.KNOWN] == 1
    assert max(Counter(optimizer.built).values()) == 1
    assert max(Counter(chain for chain, round_ in prober.timed if round_ is None).values()) == 1


async def test_quality_of_another_text_is_measured_anew(store: Path, tmp_path: Path) -> None:
    """The store may hold an artifact from another config; its figures are not comparable."""
    for text in ("one.txt", "two.txt"):
        (tmp_path / text).write_text(text)
    optimizer = FormulaOptimizer(store)
    for text, judged in (("one.txt", 0), ("two.txt", 1)):
        evaluation = {"text": str(tmp_path / text)}
        config = config_for(store, evaluation=evaluation, variants={"original": []})
        prepared = await prepared_for(config, optimizer)
        evaluator = Evaluator(
            prepared.planned, optimizer, FormulaProber(), threads=1, observe=lambda _: None
        )
        plan = await evaluator.plan("original", [])
        result = await evaluator.judge("original", [], plan)  # type: ignore[arg-type]
        assert optimizer.judged == judged
        expected = figures(HAND_WRITTEN if judged else [])["kl_mean"]
        assert result.measures["kl_mean"] == expected
    assert len(optimizer.built) == 1


async def test_known_good_recipes_begin_the_search(store: Path, storage: str) -> None:
    """What is written by hand is a recipe too, as far as the space has it."""
    outcome = await search(config_for(store, search=SEARCH), storage, FormulaOptimizer(store))
    first = outcome.records[0]
    assert (first.origin, first.value) == ("like hand", HAND_WRITTEN)


async def test_a_second_start_only_measures_again(store: Path, storage: str) -> None:
    """All trials are finished; the verdict is made anew."""
    config = config_for(store, search=SEARCH)
    first = await search(config, storage, FormulaOptimizer(store))
    prober = FormulaProber()
    second = await search(config, storage, FormulaOptimizer(store), prober)
    assert second == first
    assert all(round_ is not None for _, round_ in prober.timed)


async def test_the_front_is_measured_in_turns(store: Path, storage: str) -> None:
    """Every round in another order, so that none is always first."""
    prober = FormulaProber()
    config = config_for(store, search={**SEARCH, "finalists": 2})
    outcome = await search(config, storage, FormulaOptimizer(store), prober)
    assert outcome.verdict is not None
    order = [str(list(one.chain)) for one in outcome.verdict.contenders]
    assert len(order) == 4
    rounds = [[chain for chain, number in prober.timed if number == n] for n in range(3)]
    assert all(sorted(one) == sorted(order) for one in rounds)
    assert len({str(one) for one in rounds}) == 3


async def test_a_lucky_trial_is_not_reported_as_an_addition(store: Path, storage: str) -> None:
    """A trial's own figures made it shine; measured in turns it is like the hand-written one."""
    twin = [{"squeeze": {"x": 0.25, "y": {"choice": [3, 4]}, "twin": True}}]

    def lucky(chain: str, round_: int | None) -> float:
        return 1.5 if "twin" in chain and round_ is None else 1.0

    variants = {"hand": HAND_WRITTEN, "lean": twin}
    objectives = ["quality", "decode", "prefill"]
    config = config_for(store, variants=variants, search={**SEARCH, "objectives": objectives})
    outcome = await search(config, storage, FormulaOptimizer(store), FormulaProber(lucky))
    assert outcome.verdict is not None
    assert len(outcome.verdict.contenders) == 3
    assert outcome.verdict.added == ()
    said = report.sentences(outcome.verdict, chosen(config.search.objectives))
    assert "adds nothing" in said[0]


async def test_a_difference_that_chance_may_have_made_is_no_addition(
    store: Path, storage: str
) -> None:
    """The same case with and without chance between the rounds of each variant."""
    space = [{"squeeze": {"x": {"choice": [0.3001]}, "y": 3}}]
    variants = {"hand": HAND_WRITTEN, "lean": space}
    added = {}
    for share in (0.0, 0.2):

        def wobbly(chain: str, round_: int | None, share: float = share) -> float:
            return 1 + share * ((len(chain) + (round_ or 0)) % 3 - 1)

        config = config_for(
            store,
            variants=variants,
            search={**SEARCH, "objectives": ["quality", "decode"]},
        )
        outcome = await search(
            config, f"{storage}{share}", FormulaOptimizer(store), FormulaProber(wobbly)
        )
        assert outcome.verdict is not None
        added[share] = outcome.verdict.added
    assert {share: len(names) for share, names in added.items()} == {0.0: 1, 0.2: 0}


class Stopper(Quiet):
    """Stops the campaign when a trial begins."""

    def __init__(self, at: int) -> None:
        self.campaign: Campaign | None = None
        self.statuses: list[Status] = []
        self._at = at

    def status(self, status: Status) -> None:
        self.statuses.append(status)
        if status.done == self._at and status.doing and self.campaign is not None:
            self.campaign.stop()


async def test_what_is_stopped_tells_what_it_has(store: Path, storage: str) -> None:
    """The running trial is put back, the others are judged by their own figures."""
    config = config_for(store, search=SEARCH)
    optimizer, stopper = FormulaOptimizer(store, build_s=0.01), Stopper(4)
    prepared = await prepared_for(config, optimizer)
    study = open_study(storage, config)
    stopper.campaign = Campaign(prepared, study, optimizer, FormulaProber(), stopper, threads=1)
    outcome = await stopper.campaign.run()
    assert outcome.ending is Ending.STOPPED
    assert study.counted() == 4
    assert kinds(outcome)[Kind.ABANDONED] == 1
    assert outcome.verdict is not None
    assert not outcome.verdict.is_sure
    said = " ".join(report.sentences(outcome.verdict, chosen(config.search.objectives)))
    assert "adds" not in said
    assert "not of 3 rounds taken in turns" in said
    assert stopper.statuses[-1].left_s is not None
    again = await search(config, storage, FormulaOptimizer(store))
    assert (again.ending, study.counted()) == (Ending.DONE, 8)


async def test_cancelling_it_ends_it(store: Path, storage: str) -> None:
    """The second Ctrl-C wants no report; the trial is put back all the same."""
    config = config_for(store, search=SEARCH)
    optimizer = FormulaOptimizer(store, builds=3)  # hangs in the fourth
    task = asyncio.create_task(search(config, storage, optimizer))
    study = open_study(storage, config)
    async with asyncio.timeout(30):
        while not any(trial.state.name == "RUNNING" for trial in study._trials()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(trial.state.name == "RUNNING" for trial in study._trials())


async def test_a_full_disk_ends_the_search_and_loses_nothing(store: Path, storage: str) -> None:
    """It is not the chain's fault, and the next chain would meet it as well."""
    config = config_for(store, search=SEARCH)
    optimizer = FormulaOptimizer(store)
    optimizer.failure = OptimizerError("A disk is full.", code="disk_full")
    with pytest.raises(OptimizerError, match="disk"):
        await search(config, storage, optimizer)
    assert open_study(storage, config).counted() == 0
    optimizer.failure = None
    assert (await search(config, storage, optimizer)).ending is Ending.DONE


async def test_when_nothing_can_be_built_it_gives_up(store: Path, storage: str) -> None:
    """Eight failures in a row say enough."""
    space = [{"squeeze": {"x": {"low": 0.1, "high": 0.9}, "y": 7}}]
    config = config_for(store, search={**SEARCH, "trials": 50}, variants={"lean": space})
    outcome = await search(config, storage, FormulaOptimizer(store))
    assert outcome.ending is Ending.FAILING
    assert kinds(outcome) == {Kind.FAILED: 8}
    assert outcome.verdict is None


async def test_no_trial_begins_when_time_is_up(store: Path, storage: str) -> None:
    """And there is still a verdict."""
    config = config_for(store, search={**SEARCH, "minutes": 1})
    optimizer = FormulaOptimizer(store)
    prepared = await prepared_for(config, optimizer)
    seconds = iter(range(0, 100_000, 15))
    campaign = Campaign(
        prepared,
        study := open_study(storage, config),
        optimizer,
        FormulaProber(),
        Quiet(),
        threads=1,
        clock=lambda: float(next(seconds)),
    )
    outcome = await campaign.run()
    assert outcome.ending is Ending.OUT_OF_TIME
    assert 0 < study.counted() < 8
    assert outcome.verdict is not None


async def test_a_variant_that_serves_no_more_is_left_out_of_the_report(
    store: Path, storage: str
) -> None:
    """The others were worth the hours."""

    class Failing(FormulaProber):
        async def __call__(self, config: Any, variant: str, *, round_: int | None) -> Any:
            if round_ is not None and not config.variants[variant].chain:
                raise OptimizerError("gone")
            return await super().__call__(config, variant, round_=round_)

    config = config_for(store, search=SEARCH)
    outcome = await search(config, storage, FormulaOptimizer(store), Failing())
    assert outcome.verdict is not None
    names = [one.name for one in outcome.verdict.contenders]
    assert "hand" in names
    assert "original" not in names


async def test_a_variant_that_cannot_be_timed_gets_a_second_chance(store: Path) -> None:
    """Something else on the machine may have spoilt it."""

    class Hiccup(FormulaProber):
        async def __call__(self, config: Any, variant: str, *, round_: int | None) -> Any:
            measured = await super().__call__(config, variant, round_=round_)
            if len(self.timed) % 2:
                raise OptimizerError("spoilt")
            return measured

    config = config_for(store, search=SEARCH)
    optimizer = FormulaOptimizer(store)
    prepared = await prepared_for(config, optimizer)
    evaluator = Evaluator(prepared.planned, optimizer, Hiccup(), threads=1, observe=lambda _: None)
    plan = await evaluator.plan("lean", HAND_WRITTEN)
    assert plan is not None
    result = await evaluator.judge("lean", HAND_WRITTEN, plan)  # type: ignore[arg-type]
    assert result.kind is Kind.MEASURED


# Before the search.


async def test_a_space_that_can_never_be_built_is_a_config_error(store: Path) -> None:
    """Told with the chain that was tried, before anything is built."""
    space = [{"squeeze": {"x": {"low": 0.96, "high": 1.0}, "y": 1}}]
    config = config_for(store, variants={"lean": space})
    with pytest.raises(ConfigError) as caught:
        await prepared_for(config, FormulaOptimizer(store))
    (error,) = caught.value.errors
    assert error.path == "variants.lean.chain[0].squeeze.x"
    assert "squeeze x 0.96 y 1" in error.message


async def test_an_option_that_can_never_be_built_is_a_config_error(store: Path) -> None:
    """A misspelt field in one of several stages, for example, and not only a warning."""
    x = {"choice": [0.5, 0.99]}
    for y in (1, {"low": 0, "high": 6}, {"low": 0, "high": 10_000}):
        config = config_for(store, variants={"lean": [{"squeeze": {"x": x, "y": y}}]})
        with pytest.raises(ConfigError) as caught:
            await prepared_for(config, FormulaOptimizer(store))
        assert [error.path for error in caught.value.errors] == ["variants.lean.chain[0].squeeze.x"]


async def test_a_space_of_which_some_cannot_be_built_is_warned_of(store: Path) -> None:
    """It is searched all the same."""
    prepared = await prepared_for(config_for(store), FormulaOptimizer(store))
    (warning,) = prepared.warnings
    assert warning.startswith("variants.lean.chain[0].squeeze.x: too much")


async def test_errors_of_spaces_and_of_the_config_come_together(store: Path) -> None:
    """All at once, as everywhere."""
    space = [{"squeeze": {"x": {"low": 2, "high": 1}}}]
    config = config_for(store, variants={"bad": [{"squeeze": {"x": 2, "y": 1}}], "lean": space})
    with pytest.raises(ConfigError) as caught:
        await prepared_for(config, FormulaOptimizer(store))
    assert [error.path for error in caught.value.errors] == [
        "variants.lean.chain[0].squeeze.x.low",
        "variants.bad.chain[0].squeeze.x",
    ]

    def unreadable() -> Any:
        raise ConfigError("c.yaml", [error], {"variants": {"lean": {"chain": space}}})

    error = caught.value.errors[1]
    with pytest.raises(ConfigError) as caught:
        await prepare(unreadable, "c.yaml", FormulaOptimizer(store))
    assert len(caught.value.errors) == 2


async def test_a_study_s_name_is_what_is_searched_for(store: Path, tmp_path: Path) -> None:
    """Alike on every machine, and another one as soon as figures would mean something else."""

    async def name(place: Path = store, **changes: Any) -> str:
        config = config_for(place, **changes)
        return await study_name(
            await prepared_for(config, FormulaOptimizer(place)), "My config.yaml"
        )

    first = await name()
    assert first.startswith("my-config-")
    assert await name(tmp_path / "other") == first
    assert await name(search={"trials": 99, "seed": 5}) == first
    others = {
        await name(budget={"kl_mean": 0.1}),
        await name(search={"objectives": ["quality", "size"]}),
        await name(variants={"lean": [{"squeeze": {"x": {"low": 0.0, "high": 0.5}, "y": 1}}]}),
        await name(variants={"hand": HAND_WRITTEN}),
        await name(engine={"slots": 3}),
    }
    assert len(others | {first}) == 6


async def test_without_anything_open_a_built_in_space_is_searched(store: Path) -> None:
    """The richest of which the optimizer knows every stage."""

    class Knows(FormulaOptimizer):
        async def plan(self, request: Any) -> Any:
            from artifacts.protocol import FieldError, PlannedVariant, PlanResponse

            bad = [name for name, chain in request.variants.items() if "distill" in str(chain)]
            return PlanResponse(
                errors=tuple(
                    FieldError(path=f"variants.{name}.chain[1].distill", message="no")
                    for name in bad
                ),
                variants={
                    name: PlannedVariant(recipe="r", chain=())
                    for name in request.variants
                    if name not in bad
                },
            )

    space = await built_in_space(config_for(store), 8, Knows(store))
    chains = [str(one.chain) for one, _ in space.examples()]
    assert any("restructure" in chain for chain in chains)
    assert not any("distill" in chain for chain in chains)
    assert any("'drop': 2" in chain for chain in chains)
    flat = await built_in_space(config_for(store), 1, Knows(store))
    assert not any("restructure" in str(one.chain) for one, _ in flat.examples())


# After the search.


def contender(name: str, decode: float, **changes: Any) -> Contender:
    measures = {"kl_mean": 0.1, "decode_1": decode, "others_cores": 0.0}
    return Contender(name, "lean", ({"squeeze": {"x": 1e-05}},), measures, **changes)


OBJECTIVES = chosen(config_for(Path("s"), search={"objectives": ["quality", "decode"]})
                    .search.objectives)  # fmt: skip


def judged(*entries: Contender) -> Verdict:
    return verdict(entries, OBJECTIVES)


async def test_the_written_config_is_one_that_serve_takes(store: Path, tmp_path: Path) -> None:
    """It loads, has nothing open, and its chains and budgets are those that were measured."""
    path = tmp_path / "c.yaml"
    path.write_text(
        f"""
model: demo
store: {store}
evaluation: {{text: e.txt}}
budget: {{kl_mean: 0.5, size_bytes: 1MiB}}
engine: {{slots: 3}}
traffic: {{original: 1, lean: 3}}
variants:
  original: []
  lean:
    budget: {{kl_mean: 0.9, size_bytes: null}}
    chain: [{{squeeze: {{x: {{low: 1e-5, high: 0.9, log: true}}, y: {{low: 0, high: 9}}}}}}]
search: {{trials: 6, rounds: 1}}
"""
    )
    (tmp_path / "e.txt").write_text("text")
    config = load(path, environment={}, flags={})
    outcome = await search(config, str(tmp_path / "s.log"), FormulaOptimizer(store))
    assert outcome.verdict is not None
    objectives = chosen(config.search.objectives)
    out = tmp_path / "elsewhere" / "search.yaml"
    out.parent.mkdir()
    report.check_out(out)
    report.write(out, report.config_text(config, outcome.verdict, objectives))
    report.check_out(out)
    written = load(out, environment={}, flags={})
    found = {one.name: one for one in outcome.verdict.contenders}
    assert found.keys() == written.variants.keys()
    assert len(found) > 1
    for name, section in written.variants.items():
        assert section.chain == list(found[name].chain)
        own = None if name == "original" else config.variants["lean"].budget
        assert section.budget == own
    assert split_open({name: one.chain for name, one in written.variants.items()})[1] == []
    assert dict(written.traffic) == {"original": 1}
    same = ("model", "evaluation", "budget", "engine", "store")
    assert all(getattr(written, name) == getattr(config, name) for name in same)
    text = out.read_text()
    assert "found by trial" in text
    assert "hand-written: KL mean 0.00000, decode tok/s 100" in text


def test_a_file_of_somebody_else_s_is_not_overwritten(tmp_path: Path) -> None:
    """Found before hours are spent."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: demo\n")
    for out in (mine, tmp_path / "x.txt", tmp_path / "no" / "such.yaml"):
        with pytest.raises(report.OutError) as caught:
            report.check_out(out)
        assert caught.value.remedy


def test_names_of_variants_are_not_taken_twice() -> None:
    """A config that a search has written is searched again."""
    from server.search.finals import contenders
    from server.search.records import Known, Result

    result = Result(Kind.MEASURED, "r", "a", {"kl_mean": 0.1, "decode_1": 1.0})
    better = Result(Kind.MEASURED, "r2", "b", {"kl_mean": 0.1, "decode_1": 2.0})
    names = [
        one.name
        for one in contenders(
            [Known("search-3", [], result)], [Record(3, better, "lean", [])], OBJECTIVES, most=6
        )
    ]
    assert names == ["search-3", "search-found-3"]


def test_the_report_claims_no_more_than_was_seen() -> None:
    """One sentence per case."""
    hand = contender("hand", 100, is_known=True)
    rounds = tuple({"decode_1": decode} for decode in (100.0, 101.0, 99.0))
    twice = tuple({"decode_1": 2 * one["decode_1"]} for one in rounds)
    known = contender("hand", 100, is_known=True, rounds=rounds)
    better = contender("search-1", 200, rounds=twice)
    once = contender("search-1", 200)

    def said(*entries: Contender) -> str:
        return " ".join(report.sentences(judged(*entries), OBJECTIVES))

    assert "adds search-1 to the Pareto front" in said(known, better)
    assert "differed by: decode 1.0%" in said(known, better)
    assert "would be new" in said(hand, once)
    assert "found nothing" in said(hand)
    assert "no hand-written variant" in said(better)
    assert "adds nothing" in said(known, contender("search-1", 101, rounds=rounds))
    busy = contender("search-1", 200, rounds=twice)
    busy = Contender(busy.name, "lean", busy.chain, {**busy.measures, "others_cores": 1.5}, twice)
    assert "up to 1.5 cores" in said(known, busy)


async def test_all_trials_are_in_the_json(store: Path, storage: str) -> None:
    """With the reason of those that came to nothing."""
    outcome = await search(config_for(store, search=SEARCH), storage, FormulaOptimizer(store))
    text = report.json_text(outcome.verdict, outcome.records, study="s", ending="done")
    content = json.loads(text)
    assert len(content["trials"]) == len(outcome.records)
    assert {one["kind"] for one in content["trials"]} >= {"measured", "refused"}
    assert all(one["reason"] for one in content["trials"] if one["kind"] == "refused")
    assert content["front"]
