"""How busy the machine is with other people's work.

Owns the arithmetic on ``/proc/stat``. A figure taken beside other work is marked, since it says
little. Knows nothing of what is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

STAT = Path("/proc/stat")
QUIET_CORES = 0.1
"""Others may use this much of one core before a figure counts as disturbed."""
_WINDOW_S = 1.0


def busy_s(stat: str, ticks_per_s: int) -> float:
    """Seconds of processor time that were not idle, summed over cores, from ``/proc/stat``.

    Time that a hypervisor took away (steal) counts: it was not ours.
    """
    fields = [int(field) for field in stat.splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / ticks_per_s


class Load:
    """Looks at the machine; ``own_s`` tells the processor seconds of the bench's own processes."""

    def __init__(
        self,
        stat: Path = STAT,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        ticks_per_s: int | None = None,
    ) -> None:
        self._stat = stat
        self._clock = clock
        self._sleep = sleep
        self._ticks_per_s = ticks_per_s or os.sysconf("SC_CLK_TCK")

    def span(self, own_s: Callable[[], float]) -> Callable[[], float]:
        """Begin to look; the result says how many cores others have used since then."""
        begun = self._clock(), self._busy_s(), own_s()

        def others() -> float:
            elapsed = self._clock() - begun[0]
            busy, own = self._busy_s() - begun[1], own_s() - begun[2]
            return max(busy - own, 0.0) / elapsed

        return others

    def wait_quiet(self, timeout_s: float) -> bool:
        """Wait until the whole machine idles for a moment.

        Returns:
            Whether it did within ``timeout_s``.
        """
        deadline_s = self._clock() + timeout_s
        while True:
            others = self.span(lambda: 0.0)
            self._sleep(_WINDOW_S)
            if others() < QUIET_CORES:
                return True
            if self._clock() >= deadline_s:
                return False

    def _busy_s(self) -> float:
        return busy_s(self._stat.read_text(), self._ticks_per_s)
