"""Drafts with another model of the same tokens: one that is smaller, and thinks much alike.

Leviathan et al., "Fast inference from transformers via speculative decoding", ICML 2023, with the
draft's likeliest token as its one guess. Owns the other model's session, whose slots stand beside
those of the model that checks, and how much of each sequence it has computed. Knows nothing of
which guesses are worth making.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from artifacts.session import DecoderSession, Row
from server.engine.sequence import Sequence

_WEIGHT = 0.25  # of the newest of several measures


class DraftModel:
    """Implements ``Drafter``.

    Args:
        session: Of the other model, with as many slots and the same vocabulary.
        step_tokens: The most tokens that it computes at a time to catch up.
        clock: Monotonic seconds.
    """

    def __init__(
        self, session: DecoderSession, step_tokens: int, clock: Callable[[], float]
    ) -> None:
        self._session = session
        self._step_tokens = step_tokens
        self._clock = clock
        self._computed = [0] * session.slots
        self._round_s = 0.0

    @property
    def round_s(self) -> float:
        """See ``Drafter.round_s``; 0 until it was measured, so that it is tried."""
        return self._round_s

    def reach(self, sequence: Sequence) -> int:
        """See ``Drafter.reach``; it ends with its own context."""
        return max(self._session.max_length - sequence.known, 0)

    def draft(self, wanted: Iterable[tuple[Sequence, int]]) -> list[int]:
        """See ``Drafter.draft``; none for whom there is more to catch up than a step takes."""
        counts: dict[Sequence, int] = {}
        for sequence, count in wanted:
            # Guesses that were wrong are in its cache, and no further than the model itself is.
            self._computed[sequence.slot] = min(self._computed[sequence.slot], sequence.computed)
            counts[sequence] = count if self._catch_up(sequence) else 0
        done = 0
        while drafting := [sequence for sequence, count in counts.items() if count > done]:
            begun_s = self._clock()
            self._round(drafting, done)
            if done:  # the first one may have more to compute
                self._note(self._clock() - begun_s)
            done += 1
        return [*counts.values()]

    def copied(self, source: int, target: int, length: int) -> None:
        """See ``Drafter.copied``."""
        kept = min(self._computed[source], length)
        if kept:
            self._session.copy(source, target, kept)
        self._computed[target] = kept

    def released(self, slot: int, keep: int) -> None:
        """See ``Drafter.released``."""
        self._computed[slot] = min(self._computed[slot], keep)
        self._session.release(slot, self._computed[slot])

    def terminate(self) -> None:
        """See ``Drafter.terminate``."""
        self._session.terminate()

    def _catch_up(self, sequence: Sequence) -> bool:
        """Compute what it has not seen, a prompt above all; whether the rest is little."""
        missing = sequence.known - self._computed[sequence.slot]
        if missing > self._step_tokens:
            self._compute([self._row(sequence, self._step_tokens, logits=0)])
            missing -= self._step_tokens
        return missing <= self._step_tokens

    def _note(self, seconds: float) -> None:
        self._round_s += _WEIGHT * (seconds - self._round_s) if self._round_s else seconds

    def _round(self, sequences: list[Sequence], done: int) -> None:
        """Guess one more token of each, behind so many that were guessed already."""
        rows = [
            self._row(sequence, sequence.known + done - self._computed[sequence.slot], logits=1)
            for sequence in sequences
        ]
        guesses = self._compute(rows)
        for sequence, guess in zip(sequences, guesses, strict=True):
            sequence.tokens[sequence.known + done] = guess

    def _row(self, sequence: Sequence, count: int, *, logits: int) -> Row:
        start = self._computed[sequence.slot]
        return Row(sequence.slot, start, sequence.tokens[start : start + count], logits)

    def _compute(self, rows: list[Row]) -> list[int]:
        best: list[int] = self._session.step(rows).best.tolist()
        for row in rows:
            self._computed[row.slot] = row.start + len(row.tokens)
        return best
