"""What is measured: kinds of measures, and one figure with the circumstances it was taken in.

Owns medians and paired ratios. Knows nothing of how figures are taken.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum


class Measure(StrEnum):
    """Kinds of figures; the value is the key in the results."""

    ONE_STREAM = "tokens_per_s_1_stream"
    EIGHT_STREAMS = "tokens_per_s_8_streams"
    EIGHT_BATCHED = "tokens_per_s_8_batched"
    DUEL_ONE = "tokens_per_s_1_stream_in_duels"
    DUEL_EIGHT = "tokens_per_s_8_streams_in_duels"
    FIRST_TOKEN = "first_token_s"  # noqa: S105 - no password
    OWN_GREEDY = "own_work_per_step_s_greedy"
    OWN_TOP_P = "own_work_per_step_s_top_p"
    PREFILL_256 = "prefill_tokens_per_s_256"
    PREFILL_2048 = "prefill_tokens_per_s_2048"
    DECODE_1 = "decode_tokens_per_s_1_stream"
    DECODE_4 = "decode_tokens_per_s_4_streams"
    DECODE_8 = "decode_tokens_per_s_8_streams"
    DECODE_16 = "decode_tokens_per_s_16_streams"
    PEAK = "peak_bytes"
    RESIDENT = "resident_bytes"
    COLD_START = "cold_start_s"
    COLD_PEAK = "cold_start_peak_bytes"
    WARM_START = "warm_start_s"
    BANDWIDTH = "memory_read_bytes_per_s"


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure.

    Attributes:
        contender: Who was measured.
        measure: What.
        round: In which round.
        value: In the unit that the measure names.
        others_cores: How many cores other processes used meanwhile.
        client_cores: How many cores the client used; None when there is no client.
        server_cores: How many cores the contender's process used.
    """

    contender: str
    measure: Measure
    round: int
    value: float
    others_cores: float = 0.0
    client_cores: float | None = None
    server_cores: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some figures, and their ends."""

    median: float
    low: float
    high: float
    count: int


class Samples:
    """All figures of a run."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._samples = [*samples]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def add(self, sample: Sample) -> None:
        """Keep a figure."""
        self._samples.append(sample)

    def of(self, contender: str, measure: Measure) -> list[Sample]:
        """The figures of one contender, in the order they were taken."""
        return [
            sample
            for sample in self._samples
            if (sample.contender, sample.measure) == (contender, measure)
        ]

    def spread(self, contender: str, measure: Measure) -> Spread | None:
        """Median and ends; None when it was not measured."""
        return spread([sample.value for sample in self.of(contender, measure)])

    def ratio(self, measure: Measure, contender: str, base: str) -> Spread | None:
        """Of ``contender`` over ``base``, each round by itself, so that drift cancels out.

        Several figures of one round count as their median. None when no round has both.
        """
        return self.ratio_of(measure, contender, measure, base)

    def ratio_of(
        self, measure: Measure, contender: str, other: Measure, base: str
    ) -> Spread | None:
        """The same with another measure of ``base``."""
        ours, theirs = self._by_round(contender, measure), self._by_round(base, other)
        return spread([ours[round_] / theirs[round_] for round_ in ours if round_ in theirs])

    def client_share(self, contender: str, measure: Measure) -> float | None:
        """The client's part of the processor time that client and server used together."""
        shares = [
            sample.client_cores / (sample.client_cores + sample.server_cores)
            for sample in self.of(contender, measure)
            if sample.client_cores is not None and sample.server_cores
        ]
        return statistics.median(shares) if shares else None

    def _by_round(self, contender: str, measure: Measure) -> dict[int, float]:
        rounds: dict[int, list[float]] = {}
        for sample in self.of(contender, measure):
            rounds.setdefault(sample.round, []).append(sample.value)
        return {round_: statistics.median(values) for round_, values in rounds.items()}


def spread(values: list[float]) -> Spread | None:
    """Median and ends of figures; None when there are none."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))
