"""Grammars of llguidance: a vocabulary and a grammar's text into a matcher.

Owns the bounds within which llguidance works. Used by the server and by the process that tries
grammars first (``server.grammar_trial``), which must find the same. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np

# A mask of 128,000 tokens takes some 50 us; these end what would take a hundred times as long.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)


class GrammarError(Exception):
    """A grammar cannot be compiled; says why in llguidance's words."""


def read_vocabulary(tokenizer_json: str, vocab_size: int, ends: Sequence[int]) -> Any:
    """A vocabulary as llguidance wants it.

    Args:
        tokenizer_json: The text of a ``tokenizer.json``.
        vocab_size: Rows of the model's logits.
        ends: Token ids that end a text.
    """
    return llguidance.LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(ends) or None)


def compile_grammar(vocabulary: Any, grammar: str) -> Any:
    """Compile; the interpreter's lock is free meanwhile.

    Raises:
        GrammarError: It is no grammar, or too large.
    """
    matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise GrammarError(matcher.get_error())
    return matcher


def first_mask(matcher: Any, vocab_size: int) -> None:
    """Compute what may begin a text, which takes the grammar's laziest parts to pieces.

    Raises:
        GrammarError: It cannot be told.
    """
    words = np.empty((vocab_size + 31) // 32, np.int32)
    matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    if matcher.is_error():
        raise GrammarError(matcher.get_error())
