"""Which sequence computes how many tokens in the next step.

Owns the waiting queue, the running sequences and the slot table of one variant. There is one rule:
a step has a token budget, sequences one token short (decoding) come first, the rest goes to the
others in order of arrival. So a long prompt is computed in chunks beside the streams of others.
Pure bookkeeping: knows nothing of sessions, logits or time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from artifacts.errors import BugError
from server.engine.sequence import Sequence
from server.engine.slots import Admission, SlotTable


@dataclass(frozen=True, slots=True)
class Share:
    """One sequence's part of a step; ``samples`` when its next token can be drawn after it."""

    sequence: Sequence
    tokens: int
    samples: bool


class Scheduler:
    """Waiting and running sequences of one variant."""

    def __init__(self, *, slots: int, budget_tokens: int, step_tokens: int) -> None:
        if step_tokens < slots:
            raise BugError(f"step_tokens {step_tokens} cannot serve {slots} slots in one step.")
        self.table = SlotTable(slots, budget_tokens)
        self.step_tokens = step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute or to admit."""
        return bool(self.waiting or self.running)

    def enqueue(self, sequence: Sequence) -> None:
        """Add a sequence behind those that wait."""
        self.waiting.append(sequence)

    def admit(self, now_s: float) -> Iterator[tuple[Sequence, Admission]]:
        """Move waiting sequences into slots, first come first served, while they fit."""
        while self.waiting:
            sequence = self.waiting[0]
            prompt = sequence.tokens[: sequence.prompt_length]
            admission = self.table.admit(prompt, sequence.reserve)
            if admission is None:
                return
            self.waiting.popleft()
            sequence.slot = admission.slot
            sequence.computed = sequence.cached = admission.reused
            sequence.admitted_s = now_s
            self.running.append(sequence)
            yield sequence, admission

    def plan(self) -> list[Share]:
        """Hand out the step's tokens."""
        decoding = [sequence for sequence in self.running if sequence.pending == 1]
        shares = [Share(sequence, 1, samples=True) for sequence in decoding]
        budget = self.step_tokens - len(shares)
        if len(decoding) == len(self.running):
            return shares
        for sequence in self.running:
            pending = sequence.pending
            if pending == 1:
                continue
            if budget == 0:
                break
            tokens = min(pending, budget)
            shares.append(Share(sequence, tokens, samples=tokens == pending))
            budget -= tokens
        return shares

    def commit(self, shares: list[Share]) -> None:
        """Note that the shares have been computed."""
        for share in shares:
            share.sequence.computed += share.tokens

    def finish(self, sequence: Sequence) -> bool:
        """Take a sequence out, wherever it is.

        Returns:
            Whether its slot's memory is to be given back (nothing of it is retained).
        """
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return False
        self.running.remove(sequence)
        retained = self.table.retain(sequence.slot, sequence.tokens[: sequence.computed].copy())
        return not retained

    def discard(self, sequence: Sequence) -> tuple[int, ...]:
        """Take out a running sequence; neither its cache nor what it was copied from is trusted.

        Returns:
            The slots whose memory is to be given back.
        """
        self.running.remove(sequence)
        self.table.free(sequence.slot)
        return (sequence.slot, *self.table.forget(sequence.tokens[: sequence.cached]))

    def reset(self) -> None:
        """Drop all running sequences and all memory of slots: the cache is gone."""
        self.running.clear()
        self.table.clear()
