"""Bounds on what one request may ask for. The table for users is docs/parameters.md.

Knows nothing of a variant's own bounds (context length, vocabulary, memory), which come with it.
"""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds that hold for every variant.

    Attributes:
        max_prompt_bytes: UTF-8 bytes of a prompt or of a text to tokenize.
        max_prompt_tokens: Tokens of a prompt, besides the variant's context; also the ids of
            ``Detokenize``.
        max_completion_tokens: The largest ``max_tokens``, besides the variant's context.
        default_completion_tokens: ``max_tokens`` where neither caller nor context says less.
        max_stops: Stop strings.
        max_stop_bytes: UTF-8 bytes of one stop string.
        max_stop_token_ids: Stop token ids.
        max_logit_bias: Entries of ``logit_bias``.
        max_logprobs: Alternatives per token.
        max_routing_key_bytes: UTF-8 bytes of a routing key.
        max_choices: The largest ``n``.
        max_allowed_token_ids: Allowed token ids.
        max_bad_words: Bad words.
        max_bad_word_bytes: UTF-8 bytes of one.
        max_format_bytes: UTF-8 bytes of a response format.
        max_messages: Messages of a conversation; their texts together are a prompt's.
    """

    max_prompt_bytes: int = 1 << 20
    max_prompt_tokens: int = 1 << 17
    max_completion_tokens: int = 1 << 17
    default_completion_tokens: int = 1024
    max_stops: int = 16
    max_stop_bytes: int = 256
    max_stop_token_ids: int = 64
    max_logit_bias: int = 1024
    max_logprobs: int = 20
    max_routing_key_bytes: int = 256
    max_choices: int = 8
    max_allowed_token_ids: int = 16_384
    max_bad_words: int = 64
    max_bad_word_bytes: int = 256
    max_format_bytes: int = 64 << 10
    max_messages: int = 1024

    @property
    def largest_message_bytes(self) -> int:
        """4 MiB, or what the largest prompt takes (an id at most 5 bytes) with its parameters."""
        largest_prompt = max(self.max_prompt_bytes, 5 * self.max_prompt_tokens)
        return max(4 * _MIB, largest_prompt + _MIB)
