"""One variant in the engine: its scheduler, its session, its sampler, one step at a time.

Owns what happens between submit and final event for the requests of one variant. Knows nothing of
other variants, of threads or of who listens to the events.
"""

from __future__ import annotations

from collections.abc import Callable

from artifacts.session import DecoderSession, Row
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
from server.engine.sampler import Sampler
from server.engine.scheduler import Scheduler, Share
from server.engine.sequence import Sequence


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
        )
        self._sampler = Sampler(attach.session.vocab_size)
        self._sequences: dict[str, Sequence] = {}
        self._deadlines = 0  # requests with a deadline; 0 saves looking
        self._batch_rows = 0
        self.slowest_step_s = 0.0
        """A maximum that forgets slowly: how long a step may be expected to take."""

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return self._scheduler.busy

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
        self._deadlines += request.deadline_s is not None
        self._scheduler.enqueue(sequence)
        return None

    def cancel(self, request_id: str, reason: FinishReason) -> Event | None:
        """End a request now; None when it has ended already."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        return self._finish(sequence, reason)

    def step(self, events: list[Event]) -> tuple[StepKind | None, float]:
        """Admit, compute one step, sample.

        Args:
            events: Those of all requests are added to it; they count also when the step fails.

        Returns:
            What kind of step ran (None when none did), and how many seconds of engine time it took,
            sampling included.

        Raises:
            SessionError: The session failed; call ``fail_running``.
        """
        now_s = self._clock()
        for sequence, admission in self._scheduler.admit(now_s):
            for slot in admission.evicted:
                self.session.release(slot)
            if admission.copy_from is not None:
                self.session.copy(admission.copy_from, admission.slot, admission.reused)
            elif admission.slot not in admission.evicted:
                self.session.release(admission.slot, sequence.cached)
        shares = self._scheduler.plan()
        if not shares:
            return None, 0.0
        scores = self.session.step([self._row(share) for share in shares])
        self._scheduler.commit(shares)
        self._batch_rows = len(shares)
        sampling = [share.sequence for share in shares if share.samples]
        tokens = self._sampler.sample(scores, sampling) if sampling else []
        done_s = self._clock()
        for sequence, token in zip(sampling, tokens, strict=True):
            events.extend(self._take(sequence, token, done_s))
        self.slowest_step_s = max(0.99 * self.slowest_step_s, done_s - now_s)
        return _kind(shares), done_s - now_s

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

    def check_integrity(self) -> None:
        """See ``SlotTable.check_integrity``; and no slot is owned without a sequence."""
        self._scheduler.table.check_integrity()

    def expire(self) -> list[Event]:
        """End the requests whose deadline has passed."""
        if not self._deadlines:
            return []
        now_s = self._clock()
        late = [
            sequence
            for sequence in self._sequences.values()
            if sequence.request.deadline_s is not None and sequence.request.deadline_s <= now_s
        ]
        events: list[Event] = []
        for sequence in late:
            self._leave(sequence)
            message = "The deadline passed before the generation was complete."
            events.append(self._fail(sequence, FailureCode.DEADLINE_EXCEEDED, message))
        return events

    def _row(self, share: Share) -> Row:
        sequence = share.sequence
        start = sequence.computed
        tokens = sequence.tokens[start : start + share.tokens]
        if not share.samples:
            return Row(sequence.slot, start, tokens, 0)
        return Row(sequence.slot, start, tokens, 1, self._sampler.temperature(sequence))

    def _take(self, sequence: Sequence, token: Token | None, now_s: float) -> list[Event]:
        """Append a sampled token and find out whether the request ends with it."""
        if token is None:
            for slot in self._scheduler.discard(sequence):
                self.session.release(slot)
            return [self._fail(sequence, FailureCode.INTERNAL, "The logits are not finite.")]
        sequence.append(token.token_id, now_s)
        events: list[Event] = [Generated(sequence.request.request_id, (token,), now_s)]
        sampling = sequence.request.sampling
        ends = token.token_id in sampling.stop_token_ids or (
            token.token_id in sampling.eos_token_ids and not sampling.ignore_eos
        )
        if ends and sequence.generated >= sampling.min_tokens:
            events.append(self._finish(sequence, FinishReason.STOP, token.token_id))
        elif sequence.generated >= sampling.max_tokens:
            events.append(self._finish(sequence, FinishReason.LENGTH))
        return events

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
            self.session.release(sequence.slot)
        elif sequence.slot >= 0:
            self.session.release(sequence.slot, sequence.computed)

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.request_id]
        self._deadlines -= sequence.request.deadline_s is not None


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
