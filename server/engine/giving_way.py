"""When a busy engine leaves the processor to others for a moment.

Work in the background runs where nothing else wants to, which beside an engine that never rests is
nowhere, and it would not end. Knows nothing of who works there.
"""

from __future__ import annotations

from collections.abc import Callable

EVERY_S = 0.4
FOR_S = 0.02
"""A twentieth of the processor. Few gaps between tokens hold such a pause, and none is long."""


class GivingWay:
    """Counts how long the engine has not rested.

    Args:
        clock: Monotonic seconds.
        pause: Sleeps for some seconds.
    """

    def __init__(self, clock: Callable[[], float], pause: Callable[[float], object]) -> None:
        self._clock = clock
        self._pause = pause
        self._busy_since_s = clock()
        self._workers = 0

    def worker(self, *, begins: bool) -> None:
        """One more works in the background, or one less."""
        self._workers += 1 if begins else -1

    def rested(self) -> None:
        """The engine had nothing to do."""
        self._busy_since_s = self._clock()

    def stepped(self) -> None:
        """The engine has done a step, and may have another to do."""
        if self._workers and self._clock() - self._busy_since_s >= EVERY_S:
            self._pause(FOR_S)
            self.rested()
