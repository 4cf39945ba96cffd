"""An artifact's tokenizer: text to token ids, and what each token id means.

Owns the reading of ``tokenizer.json``. Knows nothing of how pieces of text are put together
(``artifacts.detokenizer``), of chat templates or of who asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from artifacts.errors import CorruptArtifactError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """One ``tokenizer.json``. Thread-safe."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        # A length that training wrote into the file must neither cut nor fill prompts.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._special_ids = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self._size = tokenizer.get_vocab_size(with_added_tokens=True)
        kinds = set(_decoder_kinds(tokenizer))
        self._byte_level = "ByteLevel" in kinds and kinds <= {"ByteLevel", "Sequence", "Fuse"}
        self._byte_fallback = "ByteFallback" in kinds
        self._byte_of = _byte_level_alphabet()
        # Filled as tokens are met: most of a large vocabulary never is.
        self._token_bytes: dict[int, bytes] = {}

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            CorruptArtifactError: It is missing or is no tokenizer.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CorruptArtifactError(f"{path.name}: cannot be read ({error}).") from error
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # the library raises bare Exception for all that it finds
            raise CorruptArtifactError(f"{path.name}: is no tokenizer ({error}).") from error

    @property
    def size(self) -> int:
        """Number of tokens it knows; the model's vocabulary may be padded beyond that."""
        return self._size

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of tokens that are no text, such as the end of a sequence."""
        return self._special_ids

    @property
    def byte_level(self) -> bool:
        """Whether every token is a string of bytes (see ``token_bytes``)."""
        return self._byte_level

    def to_json(self) -> str:
        """The tokenizer as the text of a ``tokenizer.json``."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a text, by default with what the file adds around it (such as a bos)."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode_exactly(self, token_ids: Sequence[int]) -> str:
        """The library's own text of token ids, special tokens included."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text

    def token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token (``Ġdef``, ``<0x0A>``), None if unknown."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of a token of a byte-level vocabulary; none for an unknown id."""
        found = self._token_bytes.get(token_id)
        if found is None:
            token = self.token(token_id) or ""
            try:
                found = bytes(self._byte_of[character] for character in token)
            except KeyError:  # an added token that is not spelt in the byte alphabet
                found = token.encode()
            self._token_bytes[token_id] = found
        return found

    def spelling(self, token_id: int) -> bytes:
        """What a token is as bytes, by itself; none for an unknown id."""
        if self._byte_level:
            return self.token_bytes(token_id)
        byte = self.fallback_byte(token_id)
        return self.decode_exactly((token_id,)).encode() if byte is None else bytes((byte,))

    def fallback_byte(self, token_id: int) -> int | None:
        """The byte that a byte-fallback token (``<0xE2>``) stands for, None for other tokens."""
        if not self._byte_fallback:
            return None
        match = _BYTE_TOKEN.fullmatch(self.token(token_id) or "")
        return int(match[1], 16) if match else None


def _decoder_kinds(tokenizer: tokenizers.Tokenizer) -> Iterator[str]:
    """Names of the decoder's parts."""
    if tokenizer.decoder is None:
        return
    pending: list[dict[str, Any]] = [json.loads(tokenizer.decoder.__getstate__())]
    while pending:
        part = pending.pop()
        yield part["type"]
        pending.extend(part.get("decoders", ()))


def _byte_level_alphabet() -> dict[str, int]:
    """The byte of each character that byte-level vocabularies spell bytes with (GPT-2's rule).

    Printable Latin-1 characters stand for themselves; the others follow from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(hidden)
    }
