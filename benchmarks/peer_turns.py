"""What is measured of everybody in the bench against peers, in turns, round after round.

A turn begins with a start and ends with the process, so that no two hold memory at a time. Owns the
figures: starts, how fast prompts are computed, how fast so many streams decode once all have begun,
and memory. Knows nothing of how contenders are asked, and of loads (``benchmarks.poisson``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.bandwidth import read_bandwidth
from benchmarks.child import ChildError
from benchmarks.contenders import Contender
from benchmarks.prompts import Prompts
from benchmarks.roster import Roster
from benchmarks.samples import Measure, Sample, Samples
from benchmarks.settings import Settings
from server.comparison.load import QUIET_CORES, Load

PREFILL = {256: Measure.PREFILL_256, 2048: Measure.PREFILL_2048}
DECODE = {
    1: Measure.DECODE_1,
    4: Measure.DECODE_4,
    8: Measure.DECODE_8,
    16: Measure.DECODE_16,
}
MEMORY = "memory"
"""Whose figure the bandwidth is."""
_WARM_UP_TOKENS = 4
_ATTEMPTS = 2


class PeerTurns:
    """Takes the figures of contenders, none of which is running."""

    def __init__(self, roster: Roster, settings: Settings, prompts: Prompts, *, load: Load) -> None:
        self._roster = roster
        self._settings = settings
        self._prompts = prompts
        self._load = load

    def run(self, samples: Samples) -> None:
        """Give everybody their turn in every round."""
        for round_ in range(self._settings.rounds):
            what = f"round {round_ + 1} of {self._settings.rounds}"
            read = read_bandwidth(self._settings.threads)
            samples.add(Sample(MEMORY, Measure.BANDWIDTH, round_, read))
            for contender in self._roster.round(round_):
                with self._roster.trying(contender, what):
                    turn = _Turn(contender, self._settings, self._prompts, self._load, round_)
                    for sample in turn.take():
                        samples.add(sample)


class _Turn:
    """One contender's turn in one round."""

    def __init__(
        self,
        contender: Contender,
        settings: Settings,
        prompts: Prompts,
        load: Load,
        round_: int,
    ) -> None:
        self._contender = contender
        self._settings = settings
        self._prompts = prompts
        self._load = load
        self._round = round_
        self._samples: list[Sample] = []

    def take(self) -> list[Sample]:
        """All figures of the turn."""
        self._load.wait_quiet(self._settings.quiet_s)
        self._note(Measure.WARM_START, self._contender.start())
        self._ask("warm-up", 1, self._settings.prompt_tokens, _WARM_UP_TOKENS)
        for length, measure in PREFILL.items():
            for repeat in range(self._settings.repeats):
                self._quietest(measure, partial(self._prefill, length), repeat)
        for count, measure in DECODE.items():
            self._quietest(measure, partial(self._decoding, count), 0)
        self._note(Measure.RESIDENT, self._contender.child.resident_bytes())
        self._note(Measure.PEAK, self._contender.child.peak_bytes())
        self._contender.end()
        return self._samples

    def _note(self, measure: Measure, value: float, others_cores: float = 0.0) -> None:
        sample = Sample(self._contender.name, measure, self._round, value, others_cores)
        self._samples.append(sample)

    def _quietest(self, measure: Measure, value: Callable[[str], float], repeat: int) -> None:
        """The least disturbed of some attempts; another attempt asks something else."""
        best: tuple[float, float] | None = None
        for attempt in range(_ATTEMPTS):
            self._load.wait_quiet(self._settings.quiet_s)
            others = self._load.span(self._own_s)
            figure = value(f"{measure} {repeat} {attempt}")
            taken = others(), figure
            if best is None or taken[0] < best[0]:
                best = taken
            if best[0] < QUIET_CORES or self._settings.quiet_s <= 0:
                break
        if best is not None:
            self._note(measure, best[1], best[0])

    def _prefill(self, length: int, purpose: str) -> float:
        """Prompt tokens per second, up to the first token."""
        return length / float(self._ask(purpose, 1, length, 1)["seconds"])

    def _decoding(self, count: int, purpose: str) -> float:
        """Tokens per second of streams that have begun."""
        length, tokens = self._settings.prompt_tokens, self._settings.new_tokens
        answer = self._ask(purpose, count, length, tokens)
        if "arrivals_s" in answer:
            return pace(answer["arrivals_s"])
        begun_s = float(self._ask(f"{purpose} begun", count, length, 1)["seconds"])
        return float(count * (tokens - 1) / (answer["seconds"] - begun_s))

    def _ask(self, purpose: str, count: int, length: int, new_tokens: int) -> dict[str, Any]:
        prompts = self._prompts.draw(purpose, self._round, count, length)
        batched = {"batched": True} if self._contender.also_batched else {}
        return self._contender.generate(prompts, new_tokens, **batched)

    def _own_s(self) -> float:
        """Processor seconds of what belongs to the bench."""
        return (self._contender.client_cpu_s() or 0.0) + self._contender.child.cpu_s()


def pace(arrivals_s: Sequence[Sequence[float]]) -> float:
    """Tokens per second from when every stream has its first until the first one ends.

    Of streams that never run all at the same time, as short ones of a tiny model, from the first
    token to the last.

    Args:
        arrivals_s: Of each stream, when each token came.

    Raises:
        ChildError: All tokens came at once.
    """
    begun_s = max(stream[0] for stream in arrivals_s)
    ended_s = min(stream[-1] for stream in arrivals_s)
    if ended_s <= begun_s:
        begun_s = min(stream[0] for stream in arrivals_s)
        ended_s = max(stream[-1] for stream in arrivals_s)
    if ended_s <= begun_s:
        raise ChildError("All tokens came at once, so there is no pace; ask for more of them.")
    count = sum(begun_s < moment <= ended_s for stream in arrivals_s for moment in stream)
    return count / (ended_s - begun_s)
