"""Who still takes part: a contender that fails is left out, and the others are measured.

Owns the failures. Knows nothing of what is done with contenders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from benchmarks.child import ChildError
from benchmarks.contenders import Contender
from server.comparison.order import order


class Roster:
    """The contenders of a run, and why some of them are out."""

    def __init__(self, contenders: Sequence[Contender], tell: Callable[[str], None]) -> None:
        self._contenders = [*contenders]
        self._tell = tell
        self.failures: dict[str, str] = {}

    def active(self) -> list[Contender]:
        """Those that have not failed."""
        return [each for each in self._contenders if each.name not in self.failures]

    def round(self, number: int) -> Iterator[Contender]:
        """Those that have not failed, in the order of a round."""
        contenders = self.active()
        for index in order(len(contenders), number):
            yield contenders[index]

    @contextmanager
    def trying(self, contender: Contender, what: str) -> Iterator[None]:
        """Leave a contender out, its process ended, when something fails in the block."""
        self._tell(f"{what}: {contender.name}")
        try:
            yield
        except ChildError as error:
            self._tell(f"FAILED, left out from now on: {error}")
            self.failures[contender.name] = str(error)
            contender.end()
