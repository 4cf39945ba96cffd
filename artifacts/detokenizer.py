"""Text of a growing sequence of token ids, piece by piece, never half a character.

A detokenizer is one sequence's state: ``push`` takes one token id and returns the text that has
become certain, ``flush`` what is left at the end. All pieces together are the text of all ids, at
a cost per token that does not grow with the sequence. Knows nothing of stop strings or streams.

Two kinds of ``tokenizer.json`` exist, and each gets the cheapest exact rule:

* *byte level* (GPT-2, Llama 3, Qwen): every token is a string of bytes, so an incremental UTF-8
  decoder is all there is to it;
* *everything else* (SentencePiece with byte fallback, WordPiece, ...): the library decodes the
  token behind the one before it, and what that adds is the token's text. Byte tokens
  (``<0xE2>``) are gathered until they make a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from artifacts.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Enough to hold one character's bytes and the token before it.
_CONTEXT_TOKENS = 8


class Detokenizer(Protocol):
    """The text side of one sequence."""

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that it makes certain (may be empty)."""
        ...

    def flush(self) -> str:
        """End the sequence: the replacement characters of a character that never got whole."""
        ...


def create_detokenizer(
    tokenizer: Tokenizer, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True
) -> Detokenizer:
    """Begin behind a prompt, so that a word's leading space survives at the seam."""
    skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
    kind = _ByteLevel if tokenizer.byte_level else _Windowed
    detokenizer: Detokenizer = kind(tokenizer, skipped)
    for token_id in prompt[-_CONTEXT_TOKENS:]:
        detokenizer.push(token_id)
    return detokenizer


def decode_all(
    tokenizer: Tokenizer, token_ids: Sequence[int], *, skip_special_tokens: bool = True
) -> str:
    """Text of a whole sequence, by the same rules as piece by piece."""
    detokenizer = create_detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    return "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()


class _ByteLevel:
    """Tokens are bytes; the decoder keeps the last one to three of an unfinished character."""

    __slots__ = ("_bytes_of", "_decode", "_skipped")

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int]) -> None:
        self._bytes_of = tokenizer.token_bytes
        self._skipped = skipped
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        return self._decode(self._bytes_of(token_id))

    def flush(self) -> str:
        return self._decode(b"", True)  # noqa: FBT003 - codecs takes `final` by position


class _Windowed:
    """Decodes each token behind the last visible one; gathers byte tokens into characters."""

    __slots__ = ("_pending", "_previous", "_skipped", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._previous: tuple[int, ...] = ()  # ids of the last piece of text, () at the start
        self._pending: list[tuple[int, int]] = []  # (id, byte) of a character not yet whole

    def push(self, token_id: int) -> str:
        if token_id in self._skipped or self._tokenizer.token(token_id) is None:
            return ""
        byte = self._tokenizer.fallback_byte(token_id)
        if byte is not None:
            self._pending.append((token_id, byte))
            return self._take_character()
        return self.flush() + self._take((token_id,))

    def flush(self) -> str:
        """Give up on an unfinished character: one replacement character per byte."""
        text = ""
        while self._pending:
            text += self._drop_first()
        return text

    def _take_character(self) -> str:
        """Text of the gathered bytes as far as it is certain."""
        text = ""
        while self._pending:
            gathered = bytes(byte for _, byte in self._pending)
            try:
                character = gathered.decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    return text
                text += self._drop_first()
                continue
            ids = tuple(token_id for token_id, _ in self._pending)
            self._pending.clear()
            # At the very start the library may strip a space; anywhere else bytes are themselves.
            text += character if self._previous else self._tokenizer.decode_exactly(ids)
            self._previous = ids
        return text

    def _drop_first(self) -> str:
        token_id, _ = self._pending.pop(0)
        self._previous = (token_id,)
        return REPLACEMENT

    def _take(self, ids: tuple[int, ...]) -> str:
        before = self._tokenizer.decode_exactly(self._previous) if self._previous else ""
        text = self._tokenizer.decode_exactly(self._previous + ids)
        self._previous = ids
        return text[len(before) :]
