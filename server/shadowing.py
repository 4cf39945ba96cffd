"""Has a candidate judged on answers that another variant gave, while nobody waits for it.

Each answer is handed to the candidate as a whole: it computes what it would have thought at every
position and generates nothing. That work has the lowest priority and is bounded; what does not fit
is dropped and counted. Lives on the event loop. Knows nothing of how figures are kept or shown.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from server.catalog import Catalog, VariantState
from server.engine.messages import (
    BACKGROUND,
    Cancel,
    Command,
    Finished,
    FinishReason,
    Recorded,
    Sampling,
    Scored,
    Scoring,
    Submit,
    Token,
)
from server.mailbox import Mailbox, Mailroom
from server.selection import Serving
from server.shadow_scores import Shadowed, shadow_scores

RECORDED = 64
"""Of how many tokens the serving variant's log-probabilities are kept at each position."""

_MOST_AT_A_TIME = 4
_LONGEST_S = 60.0


class Shadowing:
    """One server's shadow.

    Args:
        catalog: Says who the candidate is.
        mailroom: Where the engine's events arrive.
        post: Hands commands to the engine.
        clock: The engine's clock.
        draw: Uniform in [0, 1): which answers are looked at.
        done: Is told of each one.
        dropped: Is told of the candidate of each one that was not looked at after all.
    """

    def __init__(
        self,
        catalog: Catalog,
        mailroom: Mailroom,
        post: Callable[[Command], None],
        *,
        clock: Callable[[], float],
        draw: Callable[[], float],
        done: Callable[[Shadowed], None],
        dropped: Callable[[str], None],
    ) -> None:
        self._catalog = catalog
        self._mailroom = mailroom
        self._post = post
        self._clock = clock
        self._draw = draw
        self._done = done
        self._dropped = dropped
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def candidate_for(self, serving: Serving) -> str | None:
        """Who is to look at an answer of this variant, whose tokens are then recorded."""
        shadow = self._catalog.shadow
        if shadow is None or shadow.candidate == serving.name or self._draw() >= shadow.fraction:
            return None
        candidate = self._catalog.get(shadow.candidate)
        if candidate is None or candidate.state is not VariantState.READY:
            return None
        return shadow.candidate

    def look_at(
        self, serving: Serving, candidate: str | None, submit: Submit, tokens: Sequence[Token]
    ) -> None:
        """Have an answer looked at by who was chosen, when there is time; returns at once.

        One that nothing was generated for, or whose shadow has ended meanwhile, is passed over.
        """
        shadow = self._catalog.shadow
        if not tokens or shadow is None or candidate is None or shadow.candidate != candidate:
            return
        recorded = [token.recorded for token in tokens if token.recorded is not None]
        if (
            len(recorded) < len(tokens)
            or len(self._tasks) >= _MOST_AT_A_TIME
            or not self._fits(candidate, serving, submit, tokens)
        ):
            self._dropped(candidate)
            return
        work = self._look(serving.name, candidate, submit, tokens, recorded)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fits(
        self, candidate: str, serving: Serving, submit: Submit, tokens: Sequence[Token]
    ) -> bool:
        """Whether the candidate can take it: as long a text, of the same vocabulary."""
        view = self._catalog.get(candidate)
        if view is None or view.manifest is None or view.limits is None:
            return False
        length = len(submit.prompt) + len(tokens)
        return (
            view.manifest.graph.vocab_size == serving.manifest.graph.vocab_size
            and length <= min(view.limits.max_length, view.limits.kv_budget_tokens)
        )

    async def _look(
        self,
        serving: str,
        candidate: str,
        submit: Submit,
        tokens: Sequence[Token],
        recorded: Sequence[Recorded],
    ) -> None:
        request_id = f"shadow{next(self._ids)}"
        answer = tuple(token.token_id for token in tokens)
        now_s = self._clock()
        mailbox = self._mailroom.open((request_id,), lambda _: None)
        among = np.stack([one.ids for one in recorded])
        self._post(
            Submit(
                request_id=request_id,
                variant=candidate,
                prompt=(*submit.prompt, *answer),
                sampling=Sampling(max_tokens=0),
                received_s=now_s,
                deadline_s=now_s + _LONGEST_S,
                priority=BACKGROUND,
                scoring=Scoring(first=len(submit.prompt), top=1, among=among),
            )
        )
        try:
            scored = await _all(mailbox)
        finally:
            if mailbox.open:
                self._post(Cancel(request_id, FinishReason.CANCELLED))
        if scored is None:
            self._dropped(candidate)
            return
        logprobs = np.concatenate([one.among for one in scored if one.among is not None])
        thought = [token for one in scored for token in one.tokens]
        scores = shadow_scores(recorded, thought, logprobs)
        length = len(submit.prompt) + len(answer)
        self._done(Shadowed(serving, candidate, length, scores))


async def _all(mailbox: Mailbox) -> list[Scored] | None:
    """All that was scored, once it ends; None where it did not end well."""
    scored: list[Scored] = []
    while True:
        step = await mailbox.get()
        scored.extend(step.scored)
        if step.final is not None:
            final = step.final
            well = isinstance(final, Finished) and final.reason is FinishReason.LENGTH
            return scored if well else None
