"""What a text must keep to, compiled: JSON schemas, regular expressions, grammars, choices.

Owns the checks of response formats, compiling them (llguidance) off the event loop with bounds on
size and time, and what was compiled lately. Knows nothing of the engine but the constraint that it
is given.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any
from weakref import WeakKeyDictionary

import llguidance
import numpy as np
from numpy.typing import NDArray

from artifacts.tokenizer import Tokenizer
from server.calls import FormatKind, ResponseFormat
from server.engine.constraint import Constraint, ConstraintError
from server.errors import InvalidRequestError, OverloadedError
from server.limits import RequestLimits
from server.parameters import check_text
from server.selection import Serving

_LONGEST_COMPILE_S = 5.0
_MOST_PENDING = 32
_KEPT = 64
_RETRY_S = 0.5
_MOST_CHOICES = 1024
_LONGEST_PROBLEM = 300

# A mask of 128,000 tokens takes some 50 us; these end what would take a hundred times as long.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
# Models write JSON with spaces behind separators; room for more is room to write nothing else.
_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_JSON_OBJECT = '{"type": "object"}'


def check_format(wanted: ResponseFormat, limits: RequestLimits) -> None:
    """Refuse what can be refused without compiling it.

    Raises:
        InvalidRequestError: The field that is wrong.
    """
    field = _field(wanted)
    if wanted.kind is FormatKind.CHOICE:
        if not wanted.choices or not all(wanted.choices):
            raise InvalidRequestError(field, "names no text, or an empty one", "send some texts")
        if len(wanted.choices) > _MOST_CHOICES:
            problem = f"has {len(wanted.choices)} choices, and the limit is {_MOST_CHOICES}"
            raise InvalidRequestError(field, problem, "send fewer")
    elif wanted.kind is not FormatKind.JSON_OBJECT and not wanted.source:
        raise InvalidRequestError(field, "is empty", "leave it out, or say what is wanted")
    for text in (wanted.source, "".join(wanted.choices)):
        check_text(field, text, limits.max_format_bytes, "make it smaller")


class Grammars:
    """Compiles response formats for the vocabularies that serve. Lives on the event loop.

    Args:
        executor: One thread: whatever else is compiled waits meanwhile, and nothing but that.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._pending = 0
        self._vocabularies: WeakKeyDictionary[Tokenizer, Any] = WeakKeyDictionary()
        self._compiled: OrderedDict[tuple[int, ResponseFormat], Any] = OrderedDict()

    async def compile(self, wanted: ResponseFormat, serving: Serving) -> Callable[[], Constraint]:
        """Make a factory of constraints, one for each text.

        Raises:
            InvalidRequestError: It is no valid format, or too large.
            OverloadedError: Too many wait to be compiled.
        """
        key = (id(serving.tokenizer), wanted)
        matcher = self._compiled.get(key)
        if matcher is None:
            matcher = await self._in_thread(lambda: self._compile(wanted, serving), wanted)
            self._compiled[key] = matcher
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return lambda: _Matching(matcher.deep_copy(), serving.manifest.graph.vocab_size)

    async def _in_thread(self, work: Callable[[], Any], wanted: ResponseFormat) -> Any:
        if self._pending >= _MOST_PENDING:
            raise OverloadedError(
                f"{self._pending} response formats wait to be compiled, as many as the server "
                "takes; try again later.",
                retry_after_s=_RETRY_S,
            )
        self._pending += 1
        running = asyncio.get_running_loop().run_in_executor(self._executor, work)
        running.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(running), _LONGEST_COMPILE_S)
        except TimeoutError:
            raise InvalidRequestError(
                _field(wanted),
                f"took more than {_LONGEST_COMPILE_S:g} s to compile",
                "make it simpler, or try again when fewer others are compiled",
            ) from None

    def _done(self, running: asyncio.Future[Any]) -> None:
        self._pending -= 1
        if not running.cancelled():
            running.exception()  # whoever waited has it, or has left

    def _compile(self, wanted: ResponseFormat, serving: Serving) -> Any:
        """On the executor's thread."""
        field = _field(wanted)
        try:
            grammar = _grammar(wanted)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(field, f"is no valid JSON: {error}", "correct it") from error
        matcher = llguidance.LLMatcher(
            self._vocabulary(serving), grammar, log_level=0, limits=_LIMITS
        )
        if matcher.is_error():
            raise InvalidRequestError(
                field,
                f"cannot be kept to: {_short(matcher.get_error())}",
                "correct it, or make it simpler",
            )
        return matcher

    def _vocabulary(self, serving: Serving) -> Any:
        found = self._vocabularies.get(serving.tokenizer)
        if found is None:
            size = serving.manifest.graph.vocab_size
            ends = [end for end in serving.manifest.generation.eos_token_ids if end < size]
            found = llguidance.LLTokenizer(
                serving.tokenizer.to_json(), n_vocab=size, eos_token=ends or None
            )
            self._vocabularies[serving.tokenizer] = found
        return found


class _Matching:
    """Implements ``Constraint``."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._words = np.empty((vocab_size + 31) // 32, np.int32)
        self._vocab_size = vocab_size

    def exclude(self, scores: NDArray[np.float32]) -> None:
        """See ``Constraint.exclude``."""
        words = self._words
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: self._vocab_size]
        np.copyto(scores, -np.inf, where=bits == 0)

    def accept(self, token_id: int) -> bool:
        """See ``Constraint.accept``."""
        self._matcher.consume_token(token_id)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(
                f"response_format: cannot be kept to any further: "
                f"{_short(self._matcher.get_error())}; make it simpler"
            )


def _grammar(wanted: ResponseFormat) -> str:
    match wanted.kind:
        case FormatKind.JSON_SCHEMA:
            json.loads(wanted.source)  # what is no JSON is told in Python's words
            return llguidance.LLMatcher.grammar_from_json_schema(wanted.source, overrides=_LAYOUT)
        case FormatKind.JSON_OBJECT:
            return llguidance.LLMatcher.grammar_from_json_schema(_JSON_OBJECT, overrides=_LAYOUT)
        case FormatKind.REGEX:
            return llguidance.LLMatcher.grammar_from_regex(wanted.source)
        case FormatKind.GRAMMAR:
            return llguidance.LLMatcher.grammar_from_lark(wanted.source)
        case FormatKind.CHOICE:
            return llguidance.LLMatcher.grammar_from_regex("|".join(map(_literal, wanted.choices)))


def _literal(text: str) -> str:
    """A text as a regular expression of Rust's."""
    return f"({re.escape(text)})"


def _field(wanted: ResponseFormat) -> str:
    return f"response_format.{wanted.kind.value}"


def _short(problem: str) -> str:
    line = " ".join(problem.split())
    return line if len(line) <= _LONGEST_PROBLEM else line[: _LONGEST_PROBLEM - 1] + "…"
