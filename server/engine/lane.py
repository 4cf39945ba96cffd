"""One variant in the engine: its scheduler, its session, its sampler, one step at a time.

Owns what happens between submit and final event for the requests of one variant. Knows nothing of
other variants, of threads or of who listens to the events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from artifacts.forms import by_role
from artifacts.scores import Scores
from artifacts.session import DecoderSession, Row
from server.engine.constraint import ConstraintError
from server.engine.messages import (
    Attach,
    Event,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Generated,
    StepKind,
    Submit,
    Token,
    VariantLoad,
)
from server.engine.sampler import Sampler, Unsampled
from server.engine.scheduler import Scheduler, Share
from server.engine.scorer import score_prompt
from server.engine.sequence import Sequence
from server.engine.speculation import Speculation


class Stepped(NamedTuple):
    """What a step was: ``seconds`` of engine time, sampling and drafting included."""

    kind: StepKind
    seconds: float
    drafted: int
    accepted: int


class Lane:
    """The requests of one variant and the session that computes them."""

    def __init__(self, attach: Attach, clock: Callable[[], float]) -> None:
        self.variant = attach.variant
        self.weight = attach.weight
        self.session: DecoderSession = attach.session
        self._rebuild = attach.rebuild
        self._clock = clock
        self._scheduler = Scheduler(
            slots=attach.session.slots,
            budget_tokens=attach.kv_budget_tokens,
            step_tokens=max(attach.step_tokens, attach.session.slots),
            remembers_answers=not by_role(attach.session.forms),
        )
        self._sampler = Sampler(attach.session.vocab_size)
        self._drafting = attach.drafting
        self._speculation: Speculation | None = None
        if attach.drafting is not None:
            drafting = attach.drafting
            self._speculation = Speculation(
                drafting.drafter, drafting.most_tokens, adaptive=drafting.adaptive
            )
        self._sequences: dict[str, Sequence] = {}
        self._timed = 0  # requests that time ends; 0 saves looking
        self._batch_rows = 0
        self._accepted = 0  # guesses, of all requests
        self.slowest_step_s = 0.0
        """A maximum that forgets slowly: how long a step may be expected to take."""

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return self._scheduler.busy

    @property
    def serves(self) -> bool:
        """Whether a step would do something that somebody waits for."""
        return self._scheduler.serves

    @property
    def has_background(self) -> bool:
        """Whether a step could do something that nobody waits for."""
        return self._scheduler.has_background

    def terminate(self) -> None:
        """End the running step from another thread, if there is one."""
        self.session.terminate()
        if self._speculation is not None:
            self._speculation.drafter.terminate()

    def load(self) -> VariantLoad:
        """The gauges as they are now."""
        table = self._scheduler.table
        return VariantLoad(
            running_requests=len(self._scheduler.running),
            waiting_requests=len(self._scheduler.waiting),
            reserved_tokens=table.reserved_tokens,
            kv_budget_tokens=table.budget_tokens,
            batch_rows=self._batch_rows if self._scheduler.running else 0,
        )

    def submit(self, request: Submit) -> Event | None:
        """Accept a request; one that could never be served ends at once."""
        sequence = Sequence(request)
        if sequence.reserve > min(self._scheduler.table.budget_tokens, self.session.max_length):
            return refusal(request, "The request needs more tokens than the variant can hold.")
        self._sequences[request.request_id] = sequence
        self._timed += _is_timed(request)
        self._scheduler.enqueue(sequence)
        return None

    def cancel(self, request_id: str, reason: FinishReason) -> Event | None:
        """End a request now; None when it has ended already."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        return self._finish(sequence, reason)

    def step(self, events: list[Event], *, background: bool = False) -> Stepped | None:
        """Admit, compute one step, sample.

        Args:
            events: Those of all requests are added to it; they count also when the step fails.
            background: Whether it is a step for what nobody waits for.

        Returns:
            What ran; None when nothing did.

        Raises:
            SessionError: The session failed; call ``fail_running``.
        """
        now_s = self._clock()
        self._admit(now_s, events)
        shares = self._scheduler.plan(background=background)
        if not shares:
            return None
        if self._speculation is not None and not background:
            shares = self._speculation.extend(shares, self._scheduler.step_tokens)
        begun_s = self._clock()
        drafted, accepted = sum(share.drafted for share in shares), self._accepted
        rows = [self._row(share) for share in shares]
        scores = self.session.step(rows)
        self._scheduler.commit(shares)
        self._batch_rows = len(shares)
        self._read(scores, shares, rows, events)
        done_s = self._clock()
        if self._speculation is not None:
            self._speculation.note(shares, done_s - begun_s)
        self.slowest_step_s = max(0.99 * self.slowest_step_s, done_s - now_s)
        return Stepped(_kind(shares), done_s - now_s, drafted, self._accepted - accepted)

    def fail_running(self, message: str) -> list[Event]:
        """End what the session was computing INTERNAL; what waits can still be served."""
        self._scheduler.reset()
        ended = [sequence for sequence in self._sequences.values() if sequence.slot >= 0]
        return [self._fail(sequence, FailureCode.INTERNAL, message) for sequence in ended]

    def fail_all(self, code: FailureCode, message: str) -> list[Event]:
        """End every request: the variant is served no longer."""
        self._scheduler.reset()
        self._scheduler.waiting.clear()
        return [self._fail(sequence, code, message) for sequence in [*self._sequences.values()]]

    def reload(self) -> None:
        """Replace the session; the old one goes first, as memory may not hold two.

        Raises:
            Exception: Whatever hinders loading; the lane has no session then.
        """
        del self.session
        self.session = self._rebuild()
        if self._speculation is not None and self._drafting is not None:
            self._speculation.drafter = self._drafting.rebuild()

    def check_integrity(self) -> None:
        """See ``SlotTable.check_integrity``; and no slot is owned without a sequence."""
        self._scheduler.table.check_integrity()

    def expire(self) -> list[Event]:
        """End the requests whose time has passed: to wait for a slot, or to be answered."""
        now_s = self._clock()
        events = self._turn_away(now_s)
        if not self._timed:
            return events
        for sequence in [*self._sequences.values()]:
            request = sequence.request
            if request.deadline_s is not None and request.deadline_s <= now_s:
                self._leave(sequence)
                message = "The deadline passed before the generation was complete."
                events.append(self._fail(sequence, FailureCode.DEADLINE_EXCEEDED, message))
            elif request.stop_s is not None and request.stop_s <= now_s:
                events.append(self._finish(sequence, FinishReason.TIME))
        return events

    def _turn_away(self, now_s: float) -> list[Event]:
        """End those that have waited for a slot as long as they may."""
        late = [
            sequence
            for sequence in self._scheduler.waiting
            if sequence.request.queue_until_s is not None
            and sequence.request.queue_until_s <= now_s
        ]
        events: list[Event] = []
        for sequence in late:
            self._leave(sequence)
            message = "No slot came free in time."
            events.append(self._fail(sequence, FailureCode.RESOURCE_EXHAUSTED, message))
        return events

    def _admit(self, now_s: float, events: list[Event]) -> None:
        """Give slots to those that wait; background requests give theirs up for others."""
        while True:
            for sequence, admission in self._scheduler.admit(now_s):
                for slot in admission.evicted:
                    self._release(slot)
                if admission.copy_from is not None:
                    self._copy(admission.copy_from, admission.slot, admission.reused)
                elif admission.slot not in admission.evicted:
                    self._release(admission.slot, sequence.cached)
            if (outdone := self._scheduler.giving_way()) is None:
                return
            events.append(self._finish(outdone, FinishReason.CANCELLED))

    def _row(self, share: Share) -> Row:
        sequence = share.sequence
        start = sequence.computed
        tokens = sequence.tokens[start : start + share.tokens]
        temperature = self._sampler.temperature(sequence) if share.samples else 0.0
        sampled = share.sampled if temperature else 0
        return Row(sequence.slot, start, tokens, share.logits, temperature, sampled)

    def _read(
        self, scores: Scores, shares: list[Share], rows: list[Row], events: list[Event]
    ) -> None:
        """Take what a step tells: of a prompt's own tokens, and of those that follow."""
        self._sampler.read(scores)
        position = drawn = 0
        for share, row in zip(shares, rows, strict=True):
            sequence = share.sequence
            if share.scored:
                self._score(scores, share, position, events)
            position += row.logits
            # A prompt whose own tokens could not be scored has ended.
            if sequence.request.request_id in self._sequences:
                if share.samples:
                    first_drawn = drawn if row.sampled else -1
                    self._sample(share, position - share.sampled, first_drawn, events)
                elif not sequence.generates and not sequence.pending:
                    events.append(self._finish(sequence, FinishReason.LENGTH))
            drawn += row.sampled

    def _sample(self, share: Share, position: int, drawn: int, events: list[Event]) -> None:
        """Choose a sequence's next tokens: one, and one more for each guess that was right.

        Args:
            share: Of the step.
            position: Where its first logits to draw from lie in the scores.
            drawn: Where its first probabilities lie; -1 for none.
            events: What comes of it is added.
        """
        sequence = share.sequence
        guesses = sequence.tokens[sequence.known : sequence.known + share.drafted].tolist()
        sequence.drafted += share.drafted
        accepted_before = sequence.accepted
        tokens: list[Token] = []
        final: Event | None = None
        for index, guess in enumerate((*guesses, None)):
            place = drawn + index if drawn >= 0 else -1
            token = self._sampler.choose(sequence, position + index, place)
            if not isinstance(token, Token):
                final = self._give_up(sequence, token)
                break
            is_right = token.token_id == guess
            sequence.accepted += is_right
            tokens.append(token)
            final = self._take(sequence, token)
            if final is not None or not is_right:
                break
            sequence.computed += 1  # the step has computed the guess, which is a token now
        if tokens:
            request_id = sequence.request.request_id
            events.append(Generated(request_id, tuple(tokens), self._clock()))
        if final is not None:
            events.append(final)
        if share.drafted and self._speculation is not None:
            accepted = sequence.accepted - accepted_before
            self._accepted += accepted
            self._speculation.learn(share, accepted)

    def _score(self, scores: Scores, share: Share, position: int, events: list[Event]) -> None:
        scored = score_prompt(scores, position, share.sequence, share.scored)
        events.append(scored or self._give_up(share.sequence, Unsampled.NOT_FINITE))

    def _take(self, sequence: Sequence, token: Token) -> Event | None:
        """Append a sampled token; the final event where the request ends with it."""
        sequence.append(token.token_id, self._clock())
        sampling = sequence.request.sampling
        ends = token.token_id in sampling.stop_token_ids or (
            token.token_id in sampling.eos_token_ids and not sampling.ignore_eos
        )
        if ends and sequence.generated >= sampling.min_tokens:
            return self._finish(sequence, FinishReason.STOP, token.token_id)
        try:
            constraint = sequence.request.constraint
            complete = constraint is not None and constraint.accept(token.token_id)
        except ConstraintError as error:
            self._leave(sequence)
            return self._fail(sequence, FailureCode.INVALID_ARGUMENT, str(error))
        if complete:
            return self._finish(sequence, FinishReason.STOP)
        if sequence.generated >= sampling.max_tokens:
            return self._finish(sequence, FinishReason.LENGTH)
        return None

    def _give_up(self, sequence: Sequence, why: Unsampled | ConstraintError) -> Failed:
        """End a request for which no token can be chosen."""
        if why is Unsampled.NOT_FINITE:
            for slot in self._scheduler.discard(sequence):
                self._release(slot)
            return self._fail(sequence, FailureCode.INTERNAL, "The logits are not finite.")
        self._leave(sequence)
        return self._fail(sequence, FailureCode.INVALID_ARGUMENT, str(why))

    def _finish(
        self, sequence: Sequence, reason: FinishReason, stop_token_id: int | None = None
    ) -> Finished:
        self._leave(sequence)
        self._forget(sequence)
        now_s = self._clock()
        request_id = sequence.request.request_id
        return Finished(
            request_id, reason, sequence.usage(), sequence.timings(now_s), stop_token_id
        )

    def _fail(self, sequence: Sequence, code: FailureCode, message: str) -> Failed:
        """The final event of a sequence that has left the scheduler already."""
        self._forget(sequence)
        timings = sequence.timings(self._clock())
        return Failed(sequence.request.request_id, code, message, sequence.usage(), timings)

    def _leave(self, sequence: Sequence) -> None:
        if self._scheduler.finish(sequence):
            self._release(sequence.slot)
        elif sequence.slot >= 0:
            self._release(sequence.slot, sequence.computed)

    def _release(self, slot: int, keep: int = 0) -> None:
        self.session.release(slot, keep)
        if self._speculation is not None:
            self._speculation.drafter.released(slot, keep)

    def _copy(self, source: int, target: int, length: int) -> None:
        self.session.copy(source, target, length)
        if self._speculation is not None:
            self._speculation.drafter.copied(source, target, length)

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.request_id]
        self._timed -= _is_timed(sequence.request)


def refusal(request: Submit, message: str) -> Failed:
    """The final event of a request that no lane can take."""
    sequence = Sequence(request)
    timings = sequence.timings(request.received_s)
    code = FailureCode.UNAVAILABLE
    return Failed(request.request_id, code, message, sequence.usage(), timings)


def _kind(shares: list[Share]) -> StepKind:
    """Decode: every share is one generated token. Prefill: none is."""
    generated = sum(share.sequence.computed > share.sequence.prompt_length for share in shares)
    if generated == len(shares):
        return StepKind.DECODE
    return StepKind.MIXED if generated else StepKind.PREFILL


def _is_timed(request: Submit) -> bool:
    return request.deadline_s is not None or request.stop_s is not None
