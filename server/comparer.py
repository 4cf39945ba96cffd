"""Two variants compared on a server's own traffic: what the shadow and the split have shown so far.

Owns what is remembered of both (the latest answers, bounded) and what is made of it.
Quality is paired: each answer is judged by both variants. Latency is not: different requests went
to each, so they are compared within classes of prompts of like length. Knows nothing of gRPC.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.catalog import VariantState, VariantView
from server.comparison.statistics import Estimate
from server.errors import Status
from server.intervals import FEWEST_REQUESTS, mean_over_answers, stratified_ratio
from server.observer import RequestObserver, RequestRecord
from server.shadow_scores import Shadowed

_REMEMBERED = 4096
_MEASURES = ("time_to_first_token_seconds", "inter_token_latency_seconds")


@dataclass(frozen=True, slots=True)
class ShadowComparison:
    """What a candidate thought of a baseline's answers; means over positions."""

    answers: int
    positions: int
    kl_lower_bound: Estimate
    top1_agreement: Estimate
    logprob_difference: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison; ``latency_ratios`` are candidate over baseline, by measure."""

    baseline: str
    candidate: str
    shadow: ShadowComparison | None
    latency_ratios: Mapping[str, Estimate]
    baseline_requests: int
    candidate_requests: int
    baseline_engine_seconds_per_token: float | None
    candidate_engine_seconds_per_token: float | None
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Request:
    """The latencies of one request that ended well, by measure, and how long its prompt was."""

    prompt_tokens: int
    latencies: Mapping[str, float]


def _remembered() -> deque[_Request]:
    return deque(maxlen=_REMEMBERED)


def _judged() -> deque[Shadowed]:
    return deque(maxlen=_REMEMBERED)


@dataclass(slots=True)
class Comparer(RequestObserver):
    """Remembers the latest of both kinds. Lives on the event loop.

    Attributes:
        seconds_per_token: Engine seconds per token that a variant has computed since its artifact
            serves; None where there is none.
    """

    seconds_per_token: Callable[[str], float | None]
    _requests: defaultdict[str, deque[_Request]] = field(
        default_factory=lambda: defaultdict(_remembered)
    )
    _shadowed: defaultdict[tuple[str, str], deque[Shadowed]] = field(
        default_factory=lambda: defaultdict(_judged)
    )

    _dropped: Counter[str] = field(default_factory=Counter)  # by candidate
    _artifacts: dict[str, str] = field(default_factory=dict)

    def finished(self, record: RequestRecord) -> None:
        """Remember a request."""
        timings = record.timings
        if record.status is not Status.OK or timings is None or not record.completion_tokens:
            return
        latencies = {_MEASURES[0]: timings.queue_s + timings.prefill_s}
        # Choices run side by side: the gaps of one of them took the time.
        gaps = record.completion_tokens / max(record.choices, 1) - 1
        if gaps >= 1:
            latencies[_MEASURES[1]] = timings.decode_s / gaps
        self._requests[record.variant].append(_Request(record.prompt_tokens, latencies))

    def shadowed(self, one: Shadowed) -> None:
        """Remember an answer that a candidate was judged on."""
        self._shadowed[one.serving, one.candidate].append(one)

    def shadow_dropped(self, candidate: str) -> None:
        """Count an answer that a candidate was not judged on after all."""
        self._dropped[candidate] += 1

    def forget(self, variant: str) -> None:
        """Another artifact serves under this name from now on."""
        self._requests.pop(variant, None)
        self._dropped.pop(variant, None)
        for pair in [pair for pair in self._shadowed if variant in pair]:
            del self._shadowed[pair]

    def changed(self, view: VariantView) -> None:
        """Hear of a change: figures of another artifact say nothing of this one."""
        if view.state is not VariantState.READY or view.artifact is None:
            return
        if self._artifacts.get(view.name, view.artifact) != view.artifact:
            self.forget(view.name)
        self._artifacts[view.name] = view.artifact

    async def compare(self, baseline: str, candidate: str) -> Comparison:
        """Make figures of what is remembered; the resampling is done on a thread."""
        ours, theirs = [*self._requests[candidate]], [*self._requests[baseline]]
        judged = [*self._shadowed[baseline, candidate]]
        shadow, ratios, notes = await asyncio.to_thread(_figures, judged, ours, theirs)
        if dropped := self._dropped[candidate]:
            notes.append(
                f"{dropped} answers were not judged by the candidate: the engine was busy, or they "
                "did not fit (too long, or of another vocabulary)."
            )
        return Comparison(
            baseline,
            candidate,
            shadow,
            ratios,
            len(theirs),
            len(ours),
            self.seconds_per_token(baseline),
            self.seconds_per_token(candidate),
            notes,
        )


def _figures(
    judged: Sequence[Shadowed], ours: Sequence[_Request], theirs: Sequence[_Request]
) -> tuple[ShadowComparison | None, dict[str, Estimate], list[str]]:
    notes: list[str] = []
    if not judged:
        notes.append("No answer of the baseline was judged by the candidate; SetTraffic a shadow.")
    else:
        notes.append(
            "Answers of others are computed many tokens at a time, which costs less per token than "
            "generating them: compare engine seconds of variants that do the same work."
        )
    ratios: dict[str, Estimate] = {}
    for measure in _MEASURES:
        ratio = stratified_ratio(_samples(ours, measure), _samples(theirs, measure))
        if ratio is None:
            notes.append(
                f"Too few requests of like prompts for {measure}: each variant needs "
                f"{FEWEST_REQUESTS} in classes that both have answered."
            )
        else:
            ratios[measure] = ratio
    if ratios:
        notes.append(
            "Latencies contain the turns of other variants that were busy; engine seconds do not."
        )
    return _shadow(judged) if judged else None, ratios, notes


def _shadow(judged: Sequence[Shadowed]) -> ShadowComparison:
    scores = [one.scores for one in judged]
    counts = np.array([score.positions for score in scores], np.float64)

    def mean(sums: Iterable[float]) -> Estimate:
        return mean_over_answers(np.array([*sums], np.float64), counts)

    return ShadowComparison(
        answers=len(scores),
        positions=sum(score.positions for score in scores),
        kl_lower_bound=mean(score.kl_lower_bound for score in scores),
        top1_agreement=mean(score.agreements for score in scores),
        logprob_difference=mean(score.logprob_difference for score in scores),
    )


def _samples(requests: Sequence[_Request], measure: str) -> dict[int, NDArray[np.float64]]:
    """Latencies by class of prompt: lengths between one power of two and the next are alike."""
    classes: defaultdict[int, list[float]] = defaultdict(list)
    for request in requests:
        if (latency := request.latencies.get(measure)) is not None and latency > 0:
            classes[request.prompt_tokens.bit_length()].append(math.log(latency))
    return {key: np.array(values) for key, values in classes.items()}
