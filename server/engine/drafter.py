"""What guesses tokens ahead, as speculative decoding sees it. Knows nothing of how that is done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from server.engine.sequence import Sequence


class Drafter(Protocol):
    """One variant's, on the engine's thread."""

    @property
    def round_s(self) -> float:
        """Seconds of drafting one more token for all."""
        ...

    def reach(self, sequence: Sequence) -> int:
        """How many tokens ahead of a decoding sequence it could guess now; 0 for none."""
        ...

    def draft(self, wanted: Iterable[tuple[Sequence, int]]) -> list[int]:
        """Write so many guesses behind the known tokens of sequences, within its reach.

        Returns:
            How many there are of each, in order: as many as wanted, or none yet.

        Raises:
            SessionError: A model that drafts has failed.
        """
        ...

    def copied(self, source: int, target: int, length: int) -> None:
        """The beginning of one slot's cache was copied over another's."""
        ...

    def released(self, slot: int, keep: int) -> None:
        """A slot's cache beyond its first ``keep`` tokens was given back."""
        ...

    def terminate(self) -> None:
        """End what it computes, from another thread."""
        ...
