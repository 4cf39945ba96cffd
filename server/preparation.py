"""What a call's texts are to the engine: token ids, a constraint, and what is left out.

Owns the checks of prompts and of what is asked besides sampling, and the work that is done off the
event loop before a request goes to the engine. Knows nothing of places, of sampling's numbers or
of how an answer is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.calls import Conversation, GenerateCall
from server.conversations import check_conversation
from server.engine.constraint import Constraint
from server.errors import InvalidRequestError
from server.grammars import Grammars, check_format
from server.limits import RequestLimits
from server.parameters import PRIORITY, Bound, check_number, check_text, check_token_ids
from server.selection import Serving
from server.texts import Texts


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call as the engine may take it.

    Attributes:
        prompt: Its token ids, at least one.
        room: Tokens that fit behind it.
        truncated_tokens: What was left out at its beginning.
        echo: What the text is to begin with.
        bad_words: As token ids.
        constraint: Makes what the text must keep to, anew for each choice; None for any text.
    """

    prompt: tuple[int, ...]
    room: int
    truncated_tokens: int = 0
    echo: str = ""
    bad_words: tuple[tuple[int, ...], ...] = ()
    constraint: Callable[[], Constraint] | None = None


def check_call(call: GenerateCall, limits: RequestLimits, serving: Serving) -> None:
    """Refuse what can be refused before anything is encoded, sampling apart.

    Raises:
        InvalidRequestError: The first field that is wrong.
    """
    most = limits.max_prompt_tokens
    check_number("priority", call.priority, PRIORITY)
    check_number("prompt_logprobs", call.prompt_logprobs, Bound(0, limits.max_logprobs))
    check_number("truncate_prompt_tokens", call.truncate_prompt_tokens, Bound(1, most))
    places = serving.limits.slots + serving.limits.max_waiting
    if (call.sampling.n or 1) > places:
        raise InvalidRequestError(
            "sampling.n",
            f"{call.sampling.n} is more than the variant takes",
            f"use at most {places}",
        )
    if call.sampling.max_tokens == 0 and call.prompt_logprobs is None:
        raise InvalidRequestError(
            "sampling.max_tokens",
            "0 generates nothing",
            "use at least 1, or set prompt_logprobs to score the prompt alone",
        )
    if call.response_format is not None:
        check_format(call.response_format, limits)
        if call.sampling.min_tokens:
            raise InvalidRequestError(
                "sampling.min_tokens",
                "cannot be kept to together with response_format",
                "leave one of them out; a schema or grammar can ask for length itself",
            )
    match call.prompt:
        case None:
            raise InvalidRequestError("prompt", "is not set", "set text or token_ids")
        case str():
            check_text("text", call.prompt, limits.max_prompt_bytes, "shorten the prompt")
        case Conversation():
            check_conversation(call.prompt, limits, serving.template)
        case _:
            vocab_size = serving.manifest.graph.vocab_size
            check_token_ids("token_ids", call.prompt, vocab_size, most)


class Preparation:
    """Prepares calls that were checked and hold their places. Lives on the event loop."""

    def __init__(self, texts: Texts, grammars: Grammars, limits: RequestLimits) -> None:
        self._texts = texts
        self._grammars = grammars
        self._limits = limits

    async def prepare(self, call: GenerateCall, serving: Serving) -> Prepared:
        """Encode, render and compile.

        Raises:
            RequestError: Something in the call turns out wrong, or too much of it waits already.
        """
        whole, field = await self._encode(call, serving)
        kept = call.truncate_prompt_tokens
        prompt = whole if kept is None else whole[-kept:]
        self._check_prompt(prompt, field, serving)
        constraint = None
        if call.response_format is not None:
            constraint = await self._grammars.compile(call.response_format, serving)
        return Prepared(
            prompt=prompt,
            room=self._room(call, serving, prompt, field),
            truncated_tokens=len(whole) - len(prompt),
            echo=await self._echo(call, serving, prompt),
            bad_words=await self._bad_words(call.sampling.bad_words, serving),
            constraint=constraint,
        )

    async def _encode(self, call: GenerateCall, serving: Serving) -> tuple[tuple[int, ...], str]:
        """The prompt's token ids, and which field it came from."""
        match call.prompt:
            case str():
                return await self._texts.encode(serving.tokenizer, call.prompt), "text"
            case Conversation():
                text = await self._texts.render(serving.template, call.prompt)
                most = self._limits.max_prompt_bytes
                check_text("messages", text, most, "shorten the conversation")
                # The template has written what begins and ends a text.
                ids = await self._texts.encode(serving.tokenizer, text, add_special_tokens=False)
                return ids, "messages"
            case _:
                return tuple(call.prompt or ()), "token_ids"

    def _check_prompt(self, ids: Sequence[int], field: str, serving: Serving) -> None:
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
                "shorten the prompt, or set truncate_prompt_tokens",
            )
        if max(ids) >= serving.manifest.graph.vocab_size:
            # Tokenizers may know more tokens than the model has rows for.
            token = serving.tokenizer.token(max(ids))
            raise InvalidRequestError(
                field,
                f"contains {token!r}, a token of the tokenizer that this model does not have",
                "leave it out",
            )

    def _room(self, call: GenerateCall, serving: Serving, prompt: Sequence[int], field: str) -> int:
        longest = min(serving.limits.max_length, serving.limits.kv_budget_tokens)
        room = min(longest - len(prompt), self._limits.max_completion_tokens)
        least = 0 if call.sampling.max_tokens == 0 else 1
        if room < least:
            raise InvalidRequestError(
                field,
                f"has {len(prompt)} tokens, which leaves no room in the {longest} that variant "
                f"{serving.name!r} holds",
                f"send at most {longest - least}, or set truncate_prompt_tokens",
            )
        return room

    async def _echo(self, call: GenerateCall, serving: Serving, prompt: Sequence[int]) -> str:
        if not call.echo:
            return ""
        if isinstance(call.prompt, str) and call.truncate_prompt_tokens is None:
            return call.prompt
        skip = call.sampling.skip_special_tokens is not False
        return await self._texts.decode(serving.tokenizer, prompt, skip_special_tokens=skip)

    async def _bad_words(
        self, words: Sequence[str], serving: Serving
    ) -> tuple[tuple[int, ...], ...]:
        """Token ids of each word, at the beginning of a text and behind a space."""
        found: dict[tuple[int, ...], None] = {}
        for word in words:
            for spelling in (word, " " + word.lstrip()):
                ids = await self._texts.encode(
                    serving.tokenizer, spelling, add_special_tokens=False
                )
                if ids and max(ids) < serving.manifest.graph.vocab_size:
                    found[ids] = None
        return tuple(found)
