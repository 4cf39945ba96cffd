"""Speculative decoding: which sequences get drafted tokens checked, and how many of them.

A step that computes a sequence's next token can compute some drafted ones behind it, and the scores
of all of them. The sampler then chooses token after token as ever, from the same scores and the
same random numbers; a drafted token that it did not choose ends the matter. So drafts change what a
step costs and how much it gives, and never a token: with a draft that is one guess, to draw from
the model's distribution and to compare is the rejection scheme of Leviathan et al., "Fast inference
from transformers via speculative decoding", ICML 2023.

Owns the choice of lengths: as many as promise the most tokens per second, by how often drafts were
right and by what steps of their size were measured to cost. Where none promises more than plain
decoding, none is drafted; unless it is told to draft whatever it costs. Knows nothing of how drafts
are made.
"""

from __future__ import annotations

import heapq

from server.engine.acceptance import Acceptance
from server.engine.drafter import Drafter
from server.engine.scheduler import Share
from server.engine.sequence import Sequence
from server.engine.step_costs import StepCosts

_GAIN = 1.02  # what drafting must promise over plain decoding: measures are not exact
_LEAST = 0.02  # a token that is so improbable is not worth a thought
_PLAIN_EVERY = 64  # steps, so that plain decoding's cost stays known


class Speculation:
    """Lengthens the shares of one variant's decoding steps."""

    def __init__(self, drafter: Drafter, most_tokens: int, *, adaptive: bool = True) -> None:
        self.drafter = drafter
        self._most = most_tokens
        self._adaptive = adaptive
        self._costs = StepCosts()
        self._acceptance = Acceptance()  # of the variant, which a new sequence begins with
        self._speculated = 0

    def extend(self, shares: list[Share], step_tokens: int) -> list[Share]:
        """The shares with drafted tokens where they pay; as they are beside prompts.

        Args:
            shares: Of the next step.
            step_tokens: The most tokens of a step.
        """
        if not all(share.sequence.decodes for share in shares):
            return shares
        candidates = [
            (share.sequence, longest)
            for share in shares
            if (longest := self._longest(share.sequence)) > 0
        ]
        if not candidates or (self._adaptive and self._measures_plain(len(shares))):
            return shares
        room = step_tokens - len(shares)
        if self._adaptive:
            lengths = self._lengths(candidates, len(shares), room)
        else:
            lengths = [min(longest, room // len(candidates)) for _, longest in candidates]
        wanted: list[tuple[Sequence, int]] = []
        for (sequence, _), length in zip(candidates, lengths, strict=True):
            if length:
                wanted.append((sequence, length))
            else:
                self._of(sequence).hope()
        if not wanted:
            self._acceptance.hope()
            return shares
        self._speculated += 1
        sequences = (sequence for sequence, _ in wanted)
        drafted = dict(zip(sequences, self.drafter.draft(wanted), strict=True))
        return [_lengthened(share, drafted.get(share.sequence, 0)) for share in shares]

    def learn(self, share: Share, accepted: int) -> None:
        """Of a share's drafted tokens, the first ``accepted`` were what the sampler chose."""
        self._of(share.sequence).learn(share.drafted, accepted)
        self._acceptance.learn(share.drafted, accepted)

    def note(self, shares: list[Share], seconds: float) -> None:
        """A step of these took so long, drafting left out."""
        if all(share.tokens == 1 + share.drafted for share in shares):
            self._costs.note(sum(share.tokens for share in shares), seconds)

    def _measures_plain(self, rows: int) -> bool:
        """Without the plain cost of so many rows there is nothing to compare with."""
        if self._costs.knows(rows) and self._speculated < _PLAIN_EVERY:
            return False
        self._speculated = 0
        return True

    def _longest(self, sequence: Sequence) -> int:
        """How many guesses may be checked: behind the last one the same step gives a token."""
        most = min(self._most, sequence.missing - 1)
        return min(most, self.drafter.reach(sequence)) if most > 0 else 0

    def _of(self, sequence: Sequence) -> Acceptance:
        if sequence.acceptance is None:
            sequence.acceptance = Acceptance(self._acceptance.rate)
        return sequence.acceptance

    def _lengths(self, candidates: list[tuple[Sequence, int]], rows: int, room: int) -> list[int]:
        """How many tokens to draft for each: those first that are likeliest to be right."""
        rates = [self._of(sequence).rate for sequence, _ in candidates]
        chosen, best = [0] * len(candidates), [0] * len(candidates)
        expected, tokens, drafting_s = float(rows), rows, 0.0
        best_pace = _GAIN * rows / self._costs.estimate(rows)
        likeliest = [(-rate, index) for index, rate in enumerate(rates)]
        heapq.heapify(likeliest)
        while likeliest and tokens - rows < room:
            negative, index = heapq.heappop(likeliest)
            chosen[index] += 1
            tokens += 1
            expected -= negative
            if chosen[index] == max(chosen):
                drafting_s = chosen[index] * self.drafter.round_s
            pace = expected / (self._costs.estimate(tokens) + drafting_s)
            if pace > best_pace:
                best_pace, best = pace, chosen.copy()
            following = negative * rates[index]
            if chosen[index] < candidates[index][1] and -following >= _LEAST:
                heapq.heappush(likeliest, (following, index))
        return best


def _lengthened(share: Share, drafted: int) -> Share:
    if not drafted:
        return share
    return Share(share.sequence, 1 + drafted, samples=True, drafted=drafted)
