"""Measuring in turns: one computes, all others are paused, round after round.

Owns the order, the wait for a quiet machine and what is measured in a turn. Everything that a ratio
is made of is measured in the same round, minutes apart, since a shared machine drifts. A server and
its engine, a few percent apart, also meet in duels: one figure each, seconds apart. Knows nothing
of how contenders are asked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.ours import Engine
from benchmarks.prompts import Prompts
from benchmarks.roster import Roster
from benchmarks.samples import Measure, Sample, Samples
from benchmarks.settings import STREAMS, Settings
from server.comparison.load import QUIET_CORES, Load

_DUELS = 4  # of each pair and round
_ATTEMPTS = 2  # a turn that was disturbed is taken again, and the quieter one counts
_WARM_UP_TOKENS = 4
_TOP_P = {"temperature": 1.0, "top_p": 0.9}


class Turns:
    """Takes the figures of contenders that are started and paused."""

    def __init__(
        self,
        roster: Roster,
        settings: Settings,
        prompts: Prompts,
        *,
        load: Load,
    ) -> None:
        self._roster = roster
        self._settings = settings
        self._prompts = prompts
        self._load = load

    def run(self, samples: Samples) -> None:
        """Give everybody their turn in every round, then read how much memory they took."""
        rounds = self._settings.rounds
        for round_ in range(rounds):
            for contender in self._roster.round(round_):
                with self._roster.trying(contender, f"round {round_ + 1} of {rounds}"):
                    for sample in self._quietest_turn(contender, round_):
                        samples.add(sample)
            for engine in self._roster.active():
                if isinstance(engine, Engine) and engine.server in self._roster.active():
                    self._duels(engine, round_, samples)
        for contender in self._roster.active():
            with self._roster.trying(contender, "memory"):
                peak = contender.child.peak_bytes()
                samples.add(Sample(contender.name, Measure.PEAK, 0, peak))

    def _duels(self, engine: Engine, round_: int, samples: Samples) -> None:
        """Let an engine and its server take short turns, each as often first as second."""
        pair: tuple[Contender, ...] = (engine.server, engine)
        self._load.wait_quiet(self._settings.quiet_s)
        for number in range(round_ * _DUELS, (round_ + 1) * _DUELS):
            for contender in pair if number % 2 else pair[::-1]:
                with self._roster.trying(contender, f"duel {number + 1}"):
                    contender.resume()
                    try:
                        turn = self._turn(contender, number, attempt=0)
                        taken = turn.take_short()
                    finally:
                        contender.pause()
                    for sample in taken:
                        samples.add(sample)

    def _turn(self, contender: Contender, round_: int, *, attempt: int) -> _Turn:
        return _Turn(
            contender,
            self._settings,
            self._prompts,
            load=self._load,
            round_=round_,
            attempt=attempt,
        )

    def _quietest_turn(self, contender: Contender, round_: int) -> list[Sample]:
        best: list[Sample] = []
        for attempt in range(_ATTEMPTS):
            contender.resume()
            try:
                turn = self._turn(contender, round_, attempt=attempt)
                self._load.wait_quiet(self._settings.quiet_s)
                taken = turn.take()
            finally:
                contender.pause()
            if not best or disturbance(taken) < disturbance(best):
                best = taken
            if disturbance(best) < QUIET_CORES or self._settings.quiet_s <= 0:
                break
        return best


def disturbance(samples: Sequence[Sample]) -> float:
    """The most cores that others used during any of the figures."""
    return max(sample.others_cores for sample in samples)


class _Turn:
    """One contender's turn in one round."""

    def __init__(
        self,
        contender: Contender,
        settings: Settings,
        prompts: Prompts,
        *,
        load: Load,
        round_: int,
        attempt: int,
    ) -> None:
        self._contender = contender
        self._settings = settings
        self._prompts = prompts
        self._load = load
        self._round = round_
        self._attempt = attempt
        self._samples: list[Sample] = []

    def take(self) -> list[Sample]:
        """All figures of the turn."""
        contender, settings = self._contender, self._settings
        self._warm_up("warm-up")
        for repeat in range(settings.repeats):
            prompts = self._draw(f"one {repeat}", 1)
            self._throughput(Measure.ONE_STREAM, prompts)
        for repeat in range(settings.repeats if contender.batches else 1):
            prompts = self._draw(f"eight {repeat}", STREAMS)
            answer = self._throughput(Measure.EIGHT_STREAMS, prompts)
            self._own_work(Measure.OWN_GREEDY, answer)
        if contender.also_batched:
            prompts = self._draw("batched", STREAMS)
            self._throughput(Measure.EIGHT_BATCHED, prompts, batched=True)
        if isinstance(contender, Engine):
            prompts = self._draw("top_p", STREAMS)
            answer = contender.generate(prompts, settings.new_tokens, **_TOP_P)
            self._own_work(Measure.OWN_TOP_P, answer)
        for repeat in range(settings.repeats):
            prompts = self._draw(f"first {repeat}", 1, settings.long_prompt_tokens)
            self._measured(Measure.FIRST_TOKEN, partial(contender.generate, prompts, 1), _first_s)
        return self._samples

    def take_short(self) -> list[Sample]:
        """Throughput alone."""
        self._warm_up("duel warm-up")
        self._throughput(Measure.DUEL_ONE, self._draw("duel of one", 1))
        self._throughput(Measure.DUEL_EIGHT, self._draw("duel of eight", STREAMS))
        return self._samples

    def _warm_up(self, purpose: str) -> None:
        """What a pause made cold (caches, clocks of the processor, a connection) warms up."""
        count = STREAMS if self._contender.batches else 1
        self._contender.generate(self._draw(purpose, count), _WARM_UP_TOKENS)

    def _draw(self, purpose: str, count: int, length: int | None = None) -> list[list[int]]:
        # A second attempt asks something else, or it would be answered from the cache.
        named = f"{purpose} {self._attempt}"
        return self._prompts.draw(named, self._round, count, length or self._settings.prompt_tokens)

    def _throughput(
        self, measure: Measure, prompts: list[list[int]], **options: Any
    ) -> dict[str, Any]:
        """Generated tokens over the seconds from the first request to the last token."""
        tokens = self._settings.new_tokens
        return self._measured(
            measure,
            partial(self._contender.generate, prompts, tokens, **options),
            lambda answer: float(len(prompts) * tokens / answer["seconds"]),
        )

    def _own_work(self, measure: Measure, answer: dict[str, Any]) -> None:
        """The mean step: a rare expensive one (the garbage collector's, say) is work as well."""
        if answer.get("own_s"):
            value = statistics.fmean(answer["own_s"])
            others = self._samples[-1].others_cores
            self._samples.append(Sample(self._contender.name, measure, self._round, value, others))

    def _measured(
        self,
        measure: Measure,
        ask: Callable[[], dict[str, Any]],
        value: Callable[[dict[str, Any]], float],
    ) -> dict[str, Any]:
        contender = self._contender
        begun_s = time.monotonic()
        client_s, server_s = contender.client_cpu_s(), contender.child.cpu_s()
        others = self._load.span(self._own_s)
        answer = ask()
        others_cores = others()
        elapsed_s = time.monotonic() - begun_s
        client_now_s = contender.client_cpu_s()
        client_cores = None
        if client_s is not None and client_now_s is not None:
            client_cores = (client_now_s - client_s) / elapsed_s
        self._samples.append(
            Sample(
                contender.name,
                measure,
                self._round,
                value(answer),
                others_cores,
                client_cores,
                (contender.child.cpu_s() - server_s) / elapsed_s,
            )
        )
        return answer

    def _own_s(self) -> float:
        """Processor seconds of everything that belongs to the bench and is not paused."""
        client_s = self._contender.client_cpu_s() or 0.0
        return time.process_time() + client_s + self._contender.child.cpu_s()


def _first_s(answer: dict[str, Any]) -> float:
    """Seconds to the first token; what answers at once gives it at the end."""
    firsts = answer.get("first_token_s")
    return float(firsts[0] if firsts else answer["seconds"])
