"""Which sequence computes how many tokens in the next step.

Owns the running sequences and the slot table of one variant, and asks its waiting line who is next.
There is one rule: a step has a token budget, sequences one token short (decoding) come first, the
rest goes to the others by priority, then in the order in which they got their slots. So a long
prompt is computed in chunks beside the streams of others. Background work has steps of its own, so
that it makes no other's longer.
Pure bookkeeping: knows nothing of sessions, logits or time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from artifacts.errors import BugError
from server.engine.queueing import WaitingLine
from server.engine.sequence import Sequence
from server.engine.slots import Admission, SlotTable

SCORED_TOKENS = 32
"""Tokens of a prompt that one step scores at most: each takes memory for a whole vocabulary."""


@dataclass(frozen=True, slots=True)
class Share:
    """One sequence's part of a step.

    Attributes:
        sequence: Whose.
        tokens: How many of its tokens are computed.
        samples: Whether its next token can be drawn after it.
        scored: How many of the tokens' logits score the prompt's next token.
        drafted: How many of its last tokens are guesses, written behind the known ones.
    """

    sequence: Sequence
    tokens: int
    samples: bool
    scored: int = 0
    drafted: int = 0

    @property
    def logits(self) -> int:
        """Of how many of its last tokens the logits are wanted."""
        return self.tokens if self.scored else self.sampled

    @property
    def sampled(self) -> int:
        """Behind how many of its last tokens a token may be drawn."""
        return 1 + self.drafted if self.samples else 0


class Scheduler:
    """Waiting and running sequences of one variant."""

    def __init__(
        self, *, slots: int, budget_tokens: int, step_tokens: int, remembers_answers: bool = True
    ) -> None:
        """Have nothing to do yet.

        Args:
            slots: Sequences at a time.
            budget_tokens: That all of them may hold.
            step_tokens: At most, of one step.
            remembers_answers: Whether a later prompt may reuse what was computed of generated
                tokens; not where that depends on their having been generated.
        """
        if step_tokens < slots:
            raise BugError(f"step_tokens {step_tokens} cannot serve {slots} slots in one step.")
        self.table = SlotTable(slots, budget_tokens)
        self.step_tokens = step_tokens
        self._remembers_answers = remembers_answers
        self.waiting = WaitingLine()
        self.running: list[Sequence] = []  # in order of admission

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute or to admit."""
        return bool(self.waiting or self.running)

    def enqueue(self, sequence: Sequence) -> None:
        """Let a sequence wait; the waiting line says when its turn is."""
        self.waiting.push(sequence)

    def admit(self, now_s: float) -> Iterator[tuple[Sequence, Admission]]:
        """Move waiting sequences into slots, one after another, while they fit."""
        while (sequence := self.waiting.first()) is not None:
            admission = self.table.admit(sequence.reusable, sequence.reserve)
            if admission is None:
                return
            self.waiting.take(sequence)
            sequence.slot = admission.slot
            sequence.computed = sequence.cached = admission.reused
            sequence.admitted_s = now_s
            self.running.append(sequence)
            yield sequence, admission

    def giving_way(self) -> Sequence | None:
        """The running background sequence that is to go, since another waits for a slot."""
        first = self.waiting.first()
        if first is None or first.is_background:
            return None
        return next((sequence for sequence in self.running if sequence.is_background), None)

    @property
    def serves(self) -> bool:
        """Whether there is work that somebody waits for."""
        return any(not one.is_background for line in (self.running, self.waiting) for one in line)

    @property
    def has_background(self) -> bool:
        """Whether a step could compute something that nobody waits for."""
        if not self.running:
            return bool(self.waiting) and not self.serves  # it would be admitted
        return any(sequence.is_background for sequence in self.running)

    def plan(self, *, background: bool = False) -> list[Share]:
        """Hand out the step's tokens, of one kind of work or the other."""
        running = [one for one in self.running if one.is_background is background]
        decoding = [sequence for sequence in running if sequence.decodes]
        shares = [Share(sequence, 1, samples=True) for sequence in decoding]
        if len(decoding) == len(running):
            return shares
        budget = self.step_tokens - len(shares)
        prompts = (sequence for sequence in running if not sequence.decodes)
        for sequence in sorted(prompts, key=lambda sequence: sequence.request.priority):
            if budget == 0:
                break
            share = _share_of(sequence, budget)
            shares.append(share)
            budget -= share.tokens
        return shares

    def commit(self, shares: list[Share]) -> None:
        """Note that the shares have been computed; what was drafted counts once it is chosen."""
        for share in shares:
            sequence = share.sequence
            was_short = sequence.computed < sequence.prompt_length
            sequence.computed += share.tokens - share.drafted
            if was_short and sequence.computed >= sequence.prompt_length:
                kept = min(sequence.prompt_length, self._kept(sequence))
                self.table.computed(sequence.slot, sequence.tokens[:kept])

    def finish(self, sequence: Sequence) -> bool:
        """Take a sequence out, wherever it is.

        Returns:
            Whether its slot's memory is to be given back (nothing of it is retained).
        """
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return False
        self.running.remove(sequence)
        if sequence.is_background:  # what others may still need is not given up for it
            self.table.free(sequence.slot)
            return True
        kept = sequence.tokens[: self._kept(sequence)].copy()
        return not self.table.retain(sequence.slot, kept)

    def _kept(self, sequence: Sequence) -> int:
        """How many of a sequence's first tokens may be reused by others."""
        if self._remembers_answers:
            return sequence.computed
        return min(sequence.computed, sequence.alike)

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


def _share_of(sequence: Sequence, budget: int) -> Share:
    """As much of a prompt as fits."""
    tokens = min(sequence.pending, budget)
    scored = 0
    if sequence.unscored:
        tokens = min(tokens, sequence.unscored)
    elif sequence.scores_prompt:
        tokens = min(tokens, SCORED_TOKENS)
        # The last token of the prompt scores what is not known yet.
        scored = min(tokens, sequence.prompt_length - 1 - sequence.computed)
    samples = tokens == sequence.pending and sequence.generates
    return Share(sequence, tokens, samples, scored)
