"""A request before the engine: routed, checked, admitted, prepared, with all defaults filled in.

Owns the order of the checks and the places that requests hold. Knows nothing of what becomes of a
request after that, nor of gRPC.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from server.account import Account
from server.admission import Admission, Claim
from server.calls import GenerateCall
from server.engine.messages import Failed, Finished, Scoring, Submit
from server.errors import UnavailableError
from server.generation import TextOptions
from server.limits import RequestLimits
from server.parameters import check_sampling, check_text, resolve_sampling
from server.preparation import Preparation, Prepared, check_call
from server.selection import Selection, Serving, require_serving

_SEEDS = 1 << 64


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that holds places until ``leave`` is called, which must happen once.

    Attributes:
        submits: One for each of its choices.
        serving: What answers it.
        options: How its tokens become text.
        truncated_tokens: What was left out at the beginning of its prompt.
        ended: To be called when the engine ends a choice, whether or not anybody still reads.
        leave: Gives the places back.
    """

    submits: tuple[Submit, ...]
    serving: Serving
    options: TextOptions
    truncated_tokens: int
    ended: Callable[[Finished | Failed], None]
    leave: Callable[[], None]


class Intake:
    """Turns calls into submits, or refuses them. Lives on the event loop."""

    def __init__(
        self,
        selection: Selection,
        preparation: Preparation,
        limits: RequestLimits,
        clock: Callable[[], float],
        draw_seed: Callable[[], int],
        *,
        max_queue_s: float = 30.0,
        clients: int = 0,
    ) -> None:
        self._selection = selection
        self._preparation = preparation
        self._limits = limits
        self._draw_seed = draw_seed
        self._max_queue_s = max_queue_s
        self._admission = Admission(clock, max_queue_s=max_queue_s, clients=clients)
        self._ids = itertools.count(1)
        self.draining = False

    async def accept(self, call: GenerateCall, account: Account) -> Accepted:
        """Accept a call; ``account`` learns the variant as soon as it is known.

        Raises:
            RequestError: The call is refused.
        """
        view = self._selection.routed(call.variant, call.routing_key)
        account.variant = view.name
        self._refuse_when_draining()
        serving = require_serving(view)
        vocab_size = serving.manifest.graph.vocab_size
        most = self._limits.max_routing_key_bytes
        check_text("routing_key", call.routing_key, most, "shorten it")
        check_sampling(call.sampling, self._limits, vocab_size)
        check_call(call, self._limits, serving)

        claim = Claim(call.sampling.n or 1, call.client, call.priority)
        self._admission.enter(serving.name, serving.limits, claim)
        try:
            prepared = await self._preparation.prepare(call, serving)
            submits = self._resolve(call, serving, prepared)
            self._refuse_when_draining()
        except BaseException:
            for _ in range(claim.places):
                self._admission.ended(serving.name, claim, had_slot=False)
            self._admission.leave(serving.name, claim)
            raise

        def ended(final: Finished | Failed) -> None:
            self._admission.ended(serving.name, claim, had_slot=final.timings.had_slot)

        def leave() -> None:
            self._admission.leave(serving.name, claim)

        sampling = call.sampling
        options = TextOptions(
            stops=tuple(sampling.stop),
            skip_special_tokens=sampling.skip_special_tokens is not False,
            include_stop=bool(sampling.include_stop),
            echo=prepared.echo,
        )
        return Accepted(submits, serving, options, prepared.truncated_tokens, ended, leave)

    def retry_after_s(self, variant: str) -> float:
        """Seconds until a place of a variant is likely to come free."""
        return self._admission.retry_after_s(variant)

    def _resolve(
        self, call: GenerateCall, serving: Serving, prepared: Prepared
    ) -> tuple[Submit, ...]:
        sampling = resolve_sampling(
            call.sampling,
            serving.manifest.generation,
            prompt_tokens=len(prepared.prompt),
            room=prepared.room,
            vocab_size=serving.manifest.graph.vocab_size,
            limits=self._limits,
            draw_seed=self._draw_seed,
            bad_words=prepared.bad_words,
        )
        seconds = call.sampling.max_time_seconds
        scoring = None
        if call.prompt_logprobs is not None:
            scoring = Scoring(first=1, top=call.prompt_logprobs)
        return tuple(
            Submit(
                request_id=f"r{next(self._ids)}",
                variant=serving.name,
                prompt=prepared.prompt,
                sampling=replace(sampling, seed=(sampling.seed + choice) % _SEEDS),
                received_s=call.received_s,
                deadline_s=call.deadline_s,
                stop_s=None if seconds is None else call.received_s + seconds,
                queue_until_s=call.received_s + self._max_queue_s,
                priority=call.priority,
                client=call.client,
                constraint=None if prepared.constraint is None else prepared.constraint(),
                scoring=None if choice else scoring,  # one prompt is scored once
            )
            for choice in range(call.sampling.n or 1)
        )

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise UnavailableError("the server is draining before it stops; use another server.")
