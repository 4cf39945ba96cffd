"""A request before the engine: routed, checked, admitted, encoded, with all defaults filled in.

Owns the order of the checks and the places that requests hold. Knows nothing of what becomes of a
request after that, nor of gRPC.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.account import Account
from server.admission import Admission
from server.calls import GenerateCall
from server.engine.messages import Submit
from server.errors import InvalidRequestError, UnavailableError
from server.limits import RequestLimits
from server.parameters import check_sampling, check_text, check_token_ids, resolve_sampling
from server.selection import Selection, Serving, require_serving
from server.texts import Texts


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that holds a place until ``leave`` is called, which must happen once.

    ``served`` is to be called when the engine ends it, whether or not anybody still reads.
    """

    submit: Submit
    serving: Serving
    stops: tuple[str, ...]
    served: Callable[[], None]
    leave: Callable[[], None]


class Intake:
    """Turns calls into submits, or refuses them. Lives on the event loop."""

    def __init__(
        self,
        selection: Selection,
        texts: Texts,
        limits: RequestLimits,
        clock: Callable[[], float],
        draw_seed: Callable[[], int],
    ) -> None:
        self._selection = selection
        self._texts = texts
        self._limits = limits
        self._clock = clock
        self._draw_seed = draw_seed
        self._admission = Admission()
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
        self._check_prompt(call.prompt, vocab_size)

        entered_s = self._clock()
        self._admission.enter(serving.name, serving.limits)
        try:
            prompt = await self._encode(call.prompt, serving)
            submit = self._resolve(call, serving, prompt)
            self._refuse_when_draining()
        except BaseException:
            self._admission.leave(serving.name)
            raise

        def served() -> None:
            self._admission.served(serving.name, self._clock() - entered_s)

        def leave() -> None:
            self._admission.leave(serving.name)

        return Accepted(submit, serving, tuple(call.sampling.stop), served, leave)

    def _check_prompt(self, prompt: str | Sequence[int] | None, vocab_size: int) -> None:
        limits = self._limits
        if prompt is None:
            raise InvalidRequestError("prompt", "is not set", "set text or token_ids")
        if isinstance(prompt, str):
            check_text("text", prompt, limits.max_prompt_bytes, "shorten the prompt")
        else:
            check_token_ids("token_ids", prompt, vocab_size, limits.max_prompt_tokens)

    async def _encode(
        self, prompt: str | Sequence[int] | None, serving: Serving
    ) -> tuple[int, ...]:
        if isinstance(prompt, str):
            ids = await self._texts.encode(serving.tokenizer, prompt)
            field = "text"
        else:
            ids = tuple(prompt or ())
            field = "token_ids"
        if not ids:
            raise InvalidRequestError(
                field,
                "is empty, and this model has no token that begins a text",
                "send at least one token",
            )
        if len(ids) > self._limits.max_prompt_tokens:
            raise InvalidRequestError(
                field,
                f"has {len(ids)} tokens, and the limit is {self._limits.max_prompt_tokens}",
                "shorten the prompt",
            )
        vocab_size = serving.manifest.graph.vocab_size
        if max(ids) >= vocab_size:  # tokenizers may know more tokens than the model has rows for
            token = serving.tokenizer.token(max(ids))
            raise InvalidRequestError(
                field,
                f"contains {token!r}, a token of the tokenizer that this model does not have",
                "leave it out",
            )
        return ids

    def _resolve(self, call: GenerateCall, serving: Serving, prompt: tuple[int, ...]) -> Submit:
        longest = min(serving.limits.max_length, serving.limits.kv_budget_tokens)
        room = min(longest - len(prompt), self._limits.max_completion_tokens)
        if room < 1:
            raise InvalidRequestError(
                "text" if isinstance(call.prompt, str) else "token_ids",
                f"has {len(prompt)} tokens, which leaves no room in the {longest} that variant "
                f"{serving.name!r} holds",
                f"send at most {longest - 1}",
            )
        sampling = resolve_sampling(
            call.sampling,
            serving.manifest.generation,
            prompt_tokens=len(prompt),
            room=room,
            vocab_size=serving.manifest.graph.vocab_size,
            limits=self._limits,
            draw_seed=self._draw_seed,
        )
        return Submit(
            request_id=f"r{next(self._ids)}",
            variant=serving.name,
            prompt=prompt,
            sampling=sampling,
            received_s=call.received_s,
            deadline_s=call.deadline_s,
        )

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise UnavailableError("the server is draining before it stops; use another server.")
