"""Figures of two variants from a server's own traffic, against simulated truth."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalog import VariantState, VariantView
from server.comparer import Comparer
from server.engine.messages import Timings
from server.errors import Status
from server.intervals import mean_over_answers, stratified_ratio
from server.observer import RequestRecord
from server.shadow_scores import Shadowed, ShadowScores

Floats = NDArray[np.float64]


@pytest.fixture
def comparer() -> Comparer:
    return Comparer({"a": 0.002, "b": 0.001}.get)


def request(
    variant: str, prompt: int, first_s: float, *, tokens: int = 11, gap_s: float = 0.01, n: int = 1
) -> RequestRecord:
    timings = Timings(first_s / 2, first_s / 2, (tokens - 1) * gap_s)
    return RequestRecord(variant, Status.OK, 1.0, prompt, tokens * n, 0, timings, n)


def judged(positions: int, kl: float, agreements: int, difference: float = 0.0) -> Shadowed:
    scores = ShadowScores(positions, kl * positions, agreements, difference * positions)
    return Shadowed("a", "b", positions + 10, scores)


# The arithmetic.


def coverage(draw: object, truth: float, trials: int = 400) -> float:
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(trials):
        estimate = draw(rng)  # type: ignore[operator]
        hits += estimate.low <= truth <= estimate.high
    return hits / trials


def test_the_interval_of_a_ratio_covers_it() -> None:
    """Lognormal latencies, two classes of prompts of which one variant got mostly long ones."""

    def draw(rng: np.random.Generator) -> object:
        def sample(counts: dict[int, int], ratio: float) -> dict[int, Floats]:
            return {
                key: rng.normal(key * 2 + math.log(ratio), 0.5, count)
                for key, count in counts.items()
            }

        return stratified_ratio(sample({5: 30, 7: 10}, 1.25), sample({5: 10, 7: 30}, 1.0))

    assert 0.92 <= coverage(draw, 1.25) <= 0.98


def test_without_classes_the_same_data_would_mislead() -> None:
    """The twin: pooled, the variant that got short prompts looks faster than it is."""
    rng = np.random.default_rng(3)
    ours = {5: rng.normal(10, 0.1, 90), 7: rng.normal(14, 0.1, 10)}
    theirs = {5: rng.normal(10, 0.1, 10), 7: rng.normal(14, 0.1, 90)}
    by_class = stratified_ratio(ours, theirs)
    pooled = stratified_ratio(*({0: np.concatenate([*x.values()])} for x in (ours, theirs)))
    assert by_class is not None
    assert pooled is not None
    assert by_class.value == pytest.approx(1.0, abs=0.05)
    assert not by_class.excludes(1.0)
    assert pooled.excludes(1.0)


def test_the_interval_of_a_shadow_s_mean_covers_it() -> None:
    """Answers differ from each other, and positions of one answer are alike: answers are drawn."""

    def draw(rng: np.random.Generator) -> object:
        counts = rng.integers(5, 60, 40).astype(np.float64)
        means = rng.gamma(4.0, 0.05, 40)
        return mean_over_answers(means * counts, counts)

    assert 0.90 <= coverage(draw, 0.2) <= 0.98


def test_drawing_positions_instead_would_promise_too_much() -> None:
    """The twin: an interval over positions is too narrow by far when answers differ."""
    rng = np.random.default_rng(5)
    counts = np.full(40, 50.0)
    means = rng.gamma(4.0, 0.05, 40)
    over_answers = mean_over_answers(means * counts, counts)
    over_positions = mean_over_answers(np.repeat(means, 50), np.ones(40 * 50))
    assert over_answers.low is not None
    assert over_answers.high is not None
    assert over_positions.low is not None
    assert over_positions.high is not None
    narrow = over_positions.high - over_positions.low
    assert narrow < (over_answers.high - over_answers.low) / 3


def test_few_answers_have_no_interval_and_equal_ones_none_of_width() -> None:
    """7 are too few; 8 that agree leave nothing to be drawn."""
    few = mean_over_answers(np.ones(7), np.full(7, 4.0))
    assert (few.value, few.low, few.high) == (0.25, None, None)
    same = mean_over_answers(np.zeros(8), np.full(8, 4.0))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_resampling_as_many_as_are_remembered_takes_little_memory() -> None:
    """It happens inside a server that serves."""
    sums, counts = np.random.default_rng(0).random(4096), np.full(4096, 30.0)
    tracemalloc.start()
    mean_over_answers(sums, counts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


# What is remembered.


async def test_latencies_are_compared_within_classes_of_prompts(comparer: Comparer) -> None:
    """Twice as slow at each length, though its mean over all is lower."""
    for _ in range(30):
        comparer.finished(request("a", 40, 0.1))
        comparer.finished(request("b", 50, 0.2, gap_s=0.02))
    for _ in range(90):
        comparer.finished(request("a", 1000, 1.0))
    for _ in range(10):
        comparer.finished(request("b", 900, 2.0, gap_s=0.02))
    found = await comparer.compare("a", "b")
    assert (found.baseline_requests, found.candidate_requests) == (120, 40)
    for ratio in found.latency_ratios.values():
        assert ratio.value == pytest.approx(2.0)
    assert set(found.latency_ratios) == {
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
    }
    assert found.baseline_engine_seconds_per_token == 0.002
    assert found.candidate_engine_seconds_per_token == 0.001
    assert any("No answer" in note for note in found.notes)


@pytest.mark.parametrize(("alike", "other"), [(19, 0), (19, 4), (0, 100)])
async def test_too_few_of_like_prompts_give_no_ratio(
    comparer: Comparer, alike: int, other: int
) -> None:
    """Neither 19, nor 4 more of another class, nor any number in classes that differ."""
    for _ in range(100):
        comparer.finished(request("a", 40, 0.1))
    for _ in range(alike):
        comparer.finished(request("b", 40, 0.1))
    for _ in range(other):
        comparer.finished(request("b", 400, 0.1))
    found = await comparer.compare("a", "b")
    assert found.latency_ratios == {}
    assert sum("Too few requests" in note for note in found.notes) == 2


async def test_choices_run_side_by_side(comparer: Comparer) -> None:
    """Four answers at once do not make the time between tokens a quarter."""
    for _ in range(20):
        comparer.finished(request("a", 40, 0.1))
        comparer.finished(request("b", 40, 0.1, n=4))
    found = await comparer.compare("a", "b")
    assert found.latency_ratios["inter_token_latency_seconds"].value == pytest.approx(1.0)


async def test_what_did_not_end_well_or_had_no_tokens_is_left_out(comparer: Comparer) -> None:
    """A refusal is quick, and says nothing of speed."""
    for _ in range(30):
        comparer.finished(RequestRecord("b", Status.CANCELLED, 1.0, 40, 3))
        comparer.finished(RequestRecord("", Status.NOT_FOUND, 1.0))
        comparer.finished(request("b", 40, 0.1, tokens=0))
    assert (await comparer.compare("a", "b")).candidate_requests == 0


async def test_quality_is_of_the_pair_that_is_asked_about(comparer: Comparer) -> None:
    """Means over positions, not over answers."""
    for _ in range(8):
        comparer.shadowed(judged(10, 0.1, 9, -0.5))
        comparer.shadowed(judged(30, 0.3, 30, 0.0))
    comparer.shadowed(Shadowed("c", "b", 9, ShadowScores(5, 99.0, 0, 0.0)))
    shadow = (await comparer.compare("a", "b")).shadow
    assert shadow is not None
    assert (shadow.answers, shadow.positions) == (16, 320)
    assert shadow.kl_lower_bound.value == pytest.approx(0.25)
    assert shadow.top1_agreement.value == pytest.approx(39 / 40)
    assert shadow.logprob_difference.value == pytest.approx(-0.125)
    assert shadow.kl_lower_bound.low is not None
    assert shadow.kl_lower_bound.low < 0.25
    assert (await comparer.compare("b", "a")).shadow is None


async def test_what_was_dropped_is_said(comparer: Comparer) -> None:
    """Who reads the figures learns how many answers they are without."""
    comparer.shadow_dropped("b")
    comparer.shadow_dropped("b")
    notes = (await comparer.compare("a", "b")).notes
    assert any(note.startswith("2 answers were not judged") for note in notes)
    assert not any("not judged" in note for note in (await comparer.compare("b", "a")).notes)


async def test_only_the_latest_are_remembered(comparer: Comparer) -> None:
    """Memory is bounded, and old traffic says little of now."""
    for _ in range(5000):
        comparer.finished(request("a", 40, 0.1))
        comparer.shadowed(judged(1, 0.1, 1))
    found = await comparer.compare("a", "b")
    assert found.baseline_requests == 4096
    assert found.shadow is not None
    assert found.shadow.answers == 4096


@pytest.mark.parametrize("reloaded", ["a", "b"])
@pytest.mark.parametrize(("artifact", "kept"), [("x", True), ("y", False)])
async def test_figures_of_another_artifact_are_forgotten(
    comparer: Comparer, *, reloaded: str, artifact: str, kept: bool
) -> None:
    """Loaded again as it was, a variant is what it was."""
    for name in "ab":
        comparer.changed(VariantView(name, VariantState.READY, artifact="x"))
        comparer.finished(request(name, 40, 0.1))
    comparer.shadowed(judged(10, 0.1, 9))
    comparer.shadow_dropped("b")
    comparer.changed(VariantView(reloaded, VariantState.UNLOADED, artifact="x"))
    comparer.changed(VariantView(reloaded, VariantState.LOADING, artifact=artifact))
    comparer.changed(VariantView(reloaded, VariantState.READY, artifact=artifact))
    found = await comparer.compare("a", "b")
    ours = found.baseline_requests if reloaded == "a" else found.candidate_requests
    assert (found.shadow is not None) is kept
    assert ours == int(kept)
    assert found.baseline_requests + found.candidate_requests == 1 + kept
