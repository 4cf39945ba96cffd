"""Measuring starts, in turns: from nothing, and from what an earlier start has stored.

Cold: weights to first token, with all optimization. Warm: stored artifact to first token. Both
count from the start of the process, and the file cache is warm for everybody. Knows nothing of
throughput.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from benchmarks.contenders import Contender
from benchmarks.ours import Engine
from benchmarks.roster import Roster
from benchmarks.samples import Measure, Sample, Samples
from server.comparison.load import Load


class Starts:
    """Starts contenders one by one; none of them may be running."""

    def __init__(self, roster: Roster, *, load: Load, quiet_s: float) -> None:
        self._roster = roster
        self._load = load
        self._quiet_s = quiet_s

    def cold(self, samples: Samples, *, without: Collection[str] = ()) -> None:
        """Everybody but some once, with all that they made before deleted."""
        self._round("cold start", Measure.COLD_START, 0, samples, without=without)

    def warm(self, samples: Samples, rounds: int) -> None:
        """Everybody in every round."""
        for round_ in range(rounds):
            what = f"warm start {round_ + 1} of {rounds}"
            self._round(what, Measure.WARM_START, round_, samples)

    def _round(
        self,
        what: str,
        measure: Measure,
        round_: int,
        samples: Samples,
        *,
        without: Collection[str] = (),
    ) -> None:
        for contender in self._roster.round(round_):
            # An engine in-process is an instrument, not something that anybody would start.
            if isinstance(contender, Engine) or contender.name in without:
                continue
            with self._roster.trying(contender, what):
                if measure is Measure.COLD_START:
                    contender.discard()
                self._start(contender, measure, round_, samples)

    def _start(
        self,
        contender: Contender,
        measure: Measure,
        round_: int,
        samples: Samples,
    ) -> None:
        self._load.wait_quiet(self._quiet_s)
        client_s = contender.client_cpu_s() or 0.0
        used_s = 0.0

        def own_s() -> float:
            return time.process_time() + (contender.client_cpu_s() or 0.0) - client_s + used_s

        others = self._load.span(own_s)
        try:
            seconds = contender.start()
        finally:
            usage = contender.end()
        if usage is not None:
            used_s = usage.cpu_s
            if measure is Measure.COLD_START:
                samples.add(Sample(contender.name, Measure.COLD_PEAK, round_, usage.peak_bytes))
        samples.add(Sample(contender.name, measure, round_, seconds, others()))
