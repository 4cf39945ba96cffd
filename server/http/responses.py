"""Outputs of the core into the objects of OpenAI's API, whole or in chunks.

Owns their shapes and the words for how a choice ended. Knows nothing of requests or of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.calls import Finish, Output
from server.engine.messages import FinishReason, Token, Usage

Spell = Callable[[str, int], bytes]
"""The bytes of a token of a variant."""


@dataclass(slots=True)
class Usages:
    """Tokens of a request, put together from its choices and prompts."""

    prompts: dict[int, Usage] = field(default_factory=dict)
    completion_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    def add(self, prompt: int, finish: Finish) -> None:
        """A choice of a prompt has ended."""
        self.prompts[prompt] = finish.usage
        self.completion_tokens += finish.usage.completion_tokens
        self.draft_tokens += finish.usage.draft_tokens
        self.accepted_tokens += finish.usage.accepted_tokens

    def message(self) -> dict[str, Any]:
        """As the API has it; each prompt counts once."""
        prompt_tokens = sum(usage.prompt_tokens for usage in self.prompts.values())
        cached = sum(usage.cached_tokens for usage in self.prompts.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {
                "accepted_prediction_tokens": self.accepted_tokens,
                "rejected_prediction_tokens": self.draft_tokens - self.accepted_tokens,
            },
        }


@dataclass(frozen=True, slots=True)
class Kind:
    """What distinguishes one of the two methods' answers.

    Attributes:
        name: Of the whole answer's ``object``.
        chunk_name: Of a chunk's.
        id_prefix: What its ids begin with.
        is_chat: Whether texts stand in messages.
    """

    name: str
    chunk_name: str
    id_prefix: str
    is_chat: bool


COMPLETION = Kind("text_completion", "text_completion", "cmpl", is_chat=False)
CHAT = Kind("chat.completion", "chat.completion.chunk", "chatcmpl", is_chat=True)


class Choice:
    """One choice as it grows: what of it was sent, and where the next piece lies in its text."""

    def __init__(self, kind: Kind, index: int, spell: Spell, *, logprobs: bool) -> None:
        self._kind = kind
        self._index = index
        self._spell = spell
        self._logprobs = logprobs
        self._offset = 0
        self._text: list[str] = []
        self._entries: list[Any] = []
        self._finish: Finish | None = None
        self._begun = False

    def chunk(self, output: Output) -> dict[str, Any]:
        """The piece of the stream that an output is."""
        logprobs = self._logprobs_of(output)
        choice: dict[str, Any] = {
            "index": self._index,
            "logprobs": logprobs,
            "finish_reason": _finish_reason(output.finish),
        }
        if output.finish is not None:
            choice["stop_reason"] = _stop_reason(output.finish)
        if self._kind.is_chat:
            role = {} if self._begun else {"role": "assistant"}
            choice["delta"] = {**role, "content": output.text}
        else:
            choice["text"] = output.text
        self._begun = True
        return choice

    def add(self, output: Output) -> None:
        """Take a piece of an answer that is sent whole."""
        self._text.append(output.text)
        if (entries := self._logprobs_of(output)) is not None:
            self._entries.append(entries)
        self._finish = output.finish or self._finish

    def whole(self) -> dict[str, Any]:
        """The choice, once it has ended."""
        text = "".join(self._text)
        choice: dict[str, Any] = {
            "index": self._index,
            "logprobs": _joined(self._entries) if self._logprobs else None,
            "finish_reason": _finish_reason(self._finish),
            "stop_reason": _stop_reason(self._finish),
        }
        if self._kind.is_chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return choice

    def _logprobs_of(self, output: Output) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        tokens = (*output.scored, *output.tokens)
        if self._kind.is_chat:
            return {"content": [self._chat_entry(output.variant, token) for token in tokens]}
        return self._completion_entries(output.variant, tokens)

    def _chat_entry(self, variant: str, token: Token) -> dict[str, Any]:
        entry = self._spelt(variant, token.token_id, token.logprob)
        entry["top_logprobs"] = [
            self._spelt(variant, other.token_id, other.logprob) for other in token.top
        ]
        return entry

    def _spelt(self, variant: str, token_id: int, logprob: float | None) -> dict[str, Any]:
        spelling = self._spell(variant, token_id)
        return {
            "token": spelling.decode(errors="replace"),
            "logprob": logprob,
            "bytes": list(spelling),
        }

    def _completion_entries(self, variant: str, tokens: Sequence[Token]) -> dict[str, Any]:
        texts = [self._text_of(variant, token.token_id) for token in tokens]
        offsets: list[int] = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        tops: list[dict[str, float] | None] = [
            None
            if token.logprob is None
            else {self._text_of(variant, other.token_id): other.logprob for other in token.top}
            for token in tokens
        ]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _text_of(self, variant: str, token_id: int) -> str:
        return self._spell(variant, token_id).decode(errors="replace")


def _joined(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The lists of all pieces, end to end."""
    joined: dict[str, Any] = {}
    for entry in entries:
        for name, values in entry.items():
            joined.setdefault(name, []).extend(values)
    return joined


def _finish_reason(finish: Finish | None) -> str | None:
    if finish is None:
        return None
    # OpenAI has no word for a time that is over.
    return "stop" if finish.reason is FinishReason.STOP else "length"


def _stop_reason(finish: Finish | None) -> str | int | None:
    """What stopped it, as vLLM tells: a stop string or a token id."""
    if finish is None:
        return None
    return finish.stop_token_id if finish.stop_string is None else finish.stop_string
