"""What a text must keep to, compiled: JSON schemas, regular expressions, grammars, choices.

Owns the checks of response formats, compiling them off the event loop with bounds on size and time,
and what was compiled lately. A format is tried in a process of its own first
(``server.grammar_trial``). Knows nothing of the engine but the constraint that it is given.
"""

from __future__ import annotations

import asyncio
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
from server.grammar_compiler import GrammarError, compile_grammar, read_vocabulary
from server.grammar_trial import GrammarTrial, TrialEndedError, Vocabulary
from server.json_text import read_json
from server.limits import RequestLimits
from server.parameters import check_text
from server.selection import Serving

# As long as two grammars that end the process that tries them: who waits behind them is served.
_LONGEST_WAIT_S = 15.0
_MOST_PENDING = 32
_KEPT = 64
_RETRY_S = 0.5
_MOST_CHOICES = 1024
_LONGEST_PROBLEM = 300

# Models write JSON with spaces behind separators; room for more is room to write nothing else.
_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_Key = tuple[int, ResponseFormat]
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
        trial: Tries grammars before they are compiled here.
    """

    def __init__(self, executor: Executor, trial: GrammarTrial | None = None) -> None:
        self._executor = executor
        self._trial = trial or GrammarTrial()
        self._vocabularies: WeakKeyDictionary[Tokenizer, tuple[Vocabulary, Any]] = (
            WeakKeyDictionary()
        )
        self._compiling: dict[_Key, asyncio.Future[Any]] = {}
        self._compiled: OrderedDict[_Key, Any] = OrderedDict()

    async def compile(self, wanted: ResponseFormat, serving: Serving) -> Callable[[], Constraint]:
        """Make a factory of constraints, one for each text.

        Raises:
            InvalidRequestError: It is no valid format, or too large.
            OverloadedError: Too many wait to be compiled, or for too long.
        """
        key = (id(serving.tokenizer), wanted)
        matcher = self._compiled.get(key)
        if matcher is None:
            matcher = await self._in_thread(key, lambda: self._compile(wanted, serving))
            self._compiled[key] = matcher
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return lambda: _Matching(matcher.deep_copy(), serving.manifest.graph.vocab_size)

    async def _in_thread(self, key: _Key, work: Callable[[], Any]) -> Any:
        """The result of a format's work; who wants the same one waits for the same."""
        running = self._compiling.get(key) or self._begin(key, work)
        try:
            # Who leaves does not stop it, for others may want it too.
            return await asyncio.wait_for(asyncio.shield(running), _LONGEST_WAIT_S)
        except TimeoutError:
            raise OverloadedError(
                f"a response format waited more than {_LONGEST_WAIT_S:g} s to be compiled, behind "
                "others; try again later.",
                retry_after_s=_RETRY_S,
            ) from None

    def _begin(self, key: _Key, work: Callable[[], Any]) -> asyncio.Future[Any]:
        if len(self._compiling) >= _MOST_PENDING:
            raise OverloadedError(
                f"{len(self._compiling)} response formats wait to be compiled, as many as the "
                "server takes; try again later.",
                retry_after_s=_RETRY_S,
            )
        running = asyncio.get_running_loop().run_in_executor(self._executor, work)
        self._compiling[key] = running

        def done(_: asyncio.Future[Any]) -> None:
            del self._compiling[key]
            if not running.cancelled():
                running.exception()  # whoever waited has it, or has left

        running.add_done_callback(done)
        return running

    def _compile(self, wanted: ResponseFormat, serving: Serving) -> Any:
        """On the executor's thread."""
        field = _field(wanted)
        try:
            grammar = _grammar(wanted)
        except ValueError as error:
            problem = f"cannot be kept to: {_short(str(error))}"
            raise InvalidRequestError(field, problem, "correct it") from error
        vocabulary, compiled_vocabulary = self._vocabulary(serving)
        try:
            self._trial.check(vocabulary, grammar)
            return compile_grammar(compiled_vocabulary, grammar)
        except GrammarError as error:
            problem = f"cannot be kept to: {_short(str(error))}"
            raise InvalidRequestError(field, problem, "correct it, or make it simpler") from error
        except TrialEndedError as error:
            raise InvalidRequestError(field, str(error), "make it simpler") from error

    def _vocabulary(self, serving: Serving) -> tuple[Vocabulary, Any]:
        found = self._vocabularies.get(serving.tokenizer)
        if found is None:
            size = serving.manifest.graph.vocab_size
            ends = tuple(end for end in serving.manifest.generation.eos_token_ids if end < size)
            written = Vocabulary(serving.tokenizer.to_json(), size, ends)
            found = written, read_vocabulary(written.tokenizer_json, size, ends)
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
            read_json(_field(wanted), wanted.source)
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
