"""A shadow behind a core: what it is asked, what is dropped, and that no caller notices."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from server.calls import GenerateCall, Output, SamplingCall
from server.catalog import VariantState
from server.engine.messages import (
    BACKGROUND,
    Cancel,
    Failed,
    FailureCode,
    FinishReason,
    Submit,
    Timings,
    Usage,
)
from server.traffic import Shadow

if TYPE_CHECKING:
    from tests.server.conftest import Bench

ANSWER = [70, 71, 72]


@pytest.fixture(autouse=True)
def script(bench: Bench) -> None:
    """Everybody answers the same, and int8 is judged on all of it."""
    bench.engine.script = lambda submit: (
        [[]] if submit.scoring is not None else [[token] for token in ANSWER]
    )
    bench.catalog.shadow = Shadow("int8", 1.0)


def is_shadow(submit: Submit) -> bool:
    return submit.priority == BACKGROUND


async def ask(bench: Bench, variant: str = "", **sampling: Any) -> list[Output]:
    options = SamplingCall(**sampling)
    call = GenerateCall("some text", bench.core.clock(), variant=variant, sampling=options)
    return [output async for output in bench.core.generate(call)]


def shadows(bench: Bench) -> list[Submit]:
    return [submit for submit in bench.engine.submits if is_shadow(submit)]


def ids(outputs: Sequence[Output], choice: int = 0) -> list[int]:
    return [
        token.token_id for output in outputs if output.choice == choice for token in output.tokens
    ]


async def test_the_candidate_computes_the_answer_and_generates_nothing(bench: Bench) -> None:
    """Prompt and answer go in, at the lowest priority; what comes out is three sums."""
    outputs = await ask(bench)
    await bench.until(lambda: bench.recorder.judged)
    served, shadow = bench.engine.submits
    assert (served.variant, shadow.variant) == ("baseline", "int8")
    assert shadow.prompt == (*served.prompt, *ANSWER)
    assert (shadow.sampling.max_tokens, shadow.priority) == (0, BACKGROUND)
    assert shadow.deadline_s is not None
    assert shadow.scoring is not None
    assert shadow.scoring.first == len(served.prompt)
    assert shadow.scoring.among is not None
    assert shadow.scoring.among.tolist() == [[token, token + 1] for token in ANSWER]
    (one,) = bench.recorder.judged
    assert (one.serving, one.candidate, one.tokens) == ("baseline", "int8", len(shadow.prompt))
    assert one.scores.positions == one.scores.agreements == 3
    assert one.scores.kl_lower_bound == pytest.approx(0.0, abs=1e-6)
    assert one.scores.logprob_difference == pytest.approx(3 * (-0.25 - -0.5))
    assert ids(outputs) == ANSWER
    assert {output.variant for output in outputs} == {"baseline"}


async def test_a_candidate_of_another_opinion_diverges(bench: Bench) -> None:
    """The twin: half of its mass lies elsewhere."""
    bench.engine.candidate_logprob = math.log(0.25)
    await ask(bench)
    await bench.until(lambda: bench.recorder.judged)
    assert bench.recorder.judged[0].scores.kl_lower_bound > 3 * math.log(2) - 1e-3


async def test_nobody_s_request_is_changed_by_it(bench: Bench) -> None:
    """Same outputs, same account, no log-probabilities that nobody asked for."""
    with_shadow = await ask(bench, n=2, logprobs=1)
    await bench.until(lambda: bench.recorder.judged)
    bench.catalog.shadow = None
    without = await ask(bench, n=2, logprobs=1)
    for one, other in zip(with_shadow, without, strict=True):
        bare = [replace(token, recorded=None) for token in one.tokens]
        assert (one.text, bare, one.choice) == (other.text, [*other.tokens], other.choice)
    first, second = bench.recorder.records
    assert (first.variant, first.completion_tokens) == (second.variant, second.completion_tokens)
    plain = await ask(bench)
    assert all(token.logprob is None for output in plain for token in output.tokens)


async def test_of_several_choices_the_first_is_judged(bench: Bench) -> None:
    """One prompt, one judgement."""
    await ask(bench, n=3)
    await bench.until(lambda: bench.recorder.judged)
    assert [submit.recorded > 0 for submit in bench.engine.submits[:3]] == [True, False, False]
    assert len(shadows(bench)) == 1
    assert bench.recorder.judged[0].scores.positions == 3


async def test_only_a_fraction_is_looked_at(bench: Bench) -> None:
    """The bench draws 0.5: below the fraction or not."""
    bench.catalog.shadow = Shadow("int8", 0.5)
    await ask(bench)
    assert shadows(bench) == []
    assert bench.engine.submits[0].recorded == 0
    bench.catalog.shadow = Shadow("int8", 0.51)
    await ask(bench)
    await bench.until(lambda: bench.recorder.judged)


async def test_a_candidate_is_not_judged_on_its_own_answers(bench: Bench) -> None:
    """Nor while it does not serve."""
    await ask(bench, "int8")
    bench.catalog.change("int8", state=VariantState.UNLOADED)
    await ask(bench)
    assert shadows(bench) == []
    assert bench.recorder.dropped == []


async def test_a_shadow_that_ends_or_changes_meanwhile_is_passed_over(bench: Bench) -> None:
    """The new candidate was not what the answer was recorded for."""
    for changed in (None, Shadow("baseline", 1.0)):
        bench.catalog.shadow = Shadow("int8", 1.0)
        outputs = bench.core.generate(GenerateCall("x", bench.core.clock()))
        await anext(outputs)
        bench.catalog.shadow = changed
        assert [output async for output in outputs]
    assert shadows(bench) == []
    assert bench.recorder.dropped == []


@pytest.mark.parametrize("why", ["length", "budget", "vocabulary", "none"])
async def test_what_does_not_fit_the_candidate_is_dropped(bench: Bench, why: str) -> None:
    """A shorter context, less cache, or ids that mean something else; counted, and no more."""
    view = bench.catalog.views["int8"]
    assert view.limits is not None
    assert view.manifest is not None
    await ask(bench, "int8")
    length = len(bench.engine.submits[0].prompt) + len(ANSWER)
    short = 0 if why == "none" else 1
    limits, graph = view.limits, view.manifest.graph
    if why in ("length", "none"):
        limits = replace(limits, max_length=length - short)
    elif why == "budget":
        limits = replace(limits, kv_budget_tokens=length - 1)
    else:
        graph = graph.model_copy(update={"vocab_size": graph.vocab_size + 1})
    manifest = view.manifest.model_copy(update={"graph": graph})
    bench.catalog.change("int8", limits=limits, manifest=manifest)
    outputs = await ask(bench)
    assert ids(outputs) == ANSWER
    if why == "none":
        await bench.until(lambda: bench.recorder.judged)
        assert bench.recorder.dropped == []
    else:
        assert shadows(bench) == []
        assert bench.recorder.dropped == ["int8"]


async def test_more_than_a_few_at_a_time_are_dropped(bench: Bench) -> None:
    """The candidate is busy: answers go on as ever, and the rest is counted."""
    bench.engine.stalls = is_shadow
    for _ in range(7):
        assert ids(await ask(bench)) == ANSWER
    assert bench.recorder.dropped == ["int8"] * 3
    assert len(shadows(bench)) == 4


@pytest.mark.parametrize("how", ["cancelled", "failed", "expired"])
async def test_one_that_does_not_end_well_counts_as_dropped(bench: Bench, how: str) -> None:
    """It gave way to others, its step failed, or its time is over."""
    bench.engine.stalls = is_shadow
    await ask(bench)
    await bench.until(lambda: shadows(bench))
    name = shadows(bench)[0].request_id
    if how == "cancelled":
        bench.engine.post(Cancel(name, FinishReason.CANCELLED))
    else:
        code = FailureCode.INTERNAL if how == "failed" else FailureCode.DEADLINE_EXCEEDED
        nothing = Usage(0, 0, 0), Timings(0.0, 0.0, 0.0)
        bench.core.deliver([Failed(name, code, "It failed.", *nothing)])
    await bench.until(lambda: bench.recorder.dropped)
    assert bench.recorder.dropped == ["int8"]
    assert bench.recorder.judged == []
    await asyncio.sleep(0)
    assert ids(await ask(bench)) == ANSWER  # its place is free again


async def test_an_answer_without_tokens_has_nothing_to_be_judged(bench: Bench) -> None:
    """Neither judged nor dropped."""
    bench.engine.script = lambda _: [[]]
    await ask(bench)
    assert shadows(bench) == []
    assert bench.recorder.dropped == []


async def test_a_server_that_stops_ends_its_shadows(bench: Bench) -> None:
    """Nothing waits for them: a drain is over while one still runs."""
    bench.engine.stalls = is_shadow
    await ask(bench)
    await bench.until(lambda: shadows(bench))
    bench.core.drain()
    await asyncio.wait_for(bench.core.wait_idle(), 1)
    assert bench.core.end_all("The server is stopping.") == 1
    await bench.until(lambda: bench.recorder.dropped == ["int8"])
    await bench.until(lambda: not bench.engine.stalled)
