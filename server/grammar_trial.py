"""Grammars are tried in a process of their own before they are compiled in the server's.

llguidance cannot be interrupted, and a grammar of a few kilobytes can exhaust its stack: what takes
too long, too much memory or the process itself with it costs a child that nobody misses, and
the next grammar gets a fresh one. ``python -m server.grammar_trial`` is the child: it reads JSON
lines, answers each with one, and ends when its standard input does. Knows nothing of requests.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from artifacts.errors import BugError
from server.grammar_compiler import GrammarError, compile_grammar, first_mask, read_vocabulary

_log = structlog.get_logger(__name__)

LONGEST_S = 3.0
"""What compiling one grammar may take."""

_LONGEST_START_S = 60.0  # of a process, or of a vocabulary: neither is a caller's doing
# Less than any thread of the server has, so that what passes here has room there.
_STACK_BYTES = 1 << 20
_MEMORY_BYTES = 1 << 30  # beyond what the process begins with
_COMMAND = (sys.executable, "-P", "-m", "server.grammar_trial")
_ROOT = str(Path(__file__).parents[1])  # of this very code, whatever else is installed


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a grammar is compiled for; the arguments of ``read_vocabulary``."""

    tokenizer_json: str
    vocab_size: int
    ends: tuple[int, ...]


class TrialEndedError(Exception):
    """A grammar took too long, or its process with it."""


class GrammarTrial:
    """A child that tries grammars. Used by one thread at a time; blocks it for a bounded time.

    Args:
        command: The program.
        longest_s: What compiling one grammar may take, in seconds.
    """

    def __init__(self, command: Sequence[str] = _COMMAND, *, longest_s: float = LONGEST_S) -> None:
        self._command = command
        self._longest_s = longest_s
        self._child: subprocess.Popen[bytes] | None = None
        self._vocabulary: Vocabulary | None = None
        self._end: weakref.finalize[Any, GrammarTrial] | None = None

    def check(self, vocabulary: Vocabulary, grammar: str) -> None:
        """Compile a grammar where it can do no harm.

        Raises:
            GrammarError: It is no grammar, or too large.
            TrialEndedError: It is one that does harm; the sentence goes on from its field's name.
            BugError: There is no process to try it in.
        """
        self._require(vocabulary)
        problem = self._ask({"grammar": grammar}, self._longest_s)
        if problem:
            raise GrammarError(problem)

    def _require(self, vocabulary: Vocabulary) -> None:
        """Have a child that knows the vocabulary."""
        if self._child is None:
            # Its standard error is that of a library that may break; how it ended is told below.
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join((_ROOT, *_paths()))},
            )
            self._end = weakref.finalize(self, _end, self._child)
            self._vocabulary = None
        if self._vocabulary != vocabulary:
            said = {
                "tokenizer": vocabulary.tokenizer_json,
                "vocab_size": vocabulary.vocab_size,
                "ends": vocabulary.ends,
            }
            try:
                self._ask(said, _LONGEST_START_S)
            except TrialEndedError as error:
                raise BugError("The process that tries grammars did not begin.") from error
            self._vocabulary = vocabulary

    def _ask(self, question: dict[str, Any], longest_s: float) -> str:
        """The child's answer: what is wrong, empty where nothing is."""
        child = self._child
        assert child is not None  # noqa: S101 - _require came first
        assert child.stdin is not None  # noqa: S101
        assert child.stdout is not None  # noqa: S101
        try:
            _write(child.stdin.fileno(), json.dumps(question).encode() + b"\n")
            answer = _read_line(child.stdout.fileno(), time.monotonic() + longest_s)
        except TimeoutError:
            self._give_up()
            raise TrialEndedError(f"took more than {longest_s:g} s to compile") from None
        except OSError:
            answer = b""
        if not answer:
            status = self._give_up()
            _log.warning("a grammar ended the process that tried it", status=status)
            raise TrialEndedError("is too large or too deeply nested to compile")
        return str(json.loads(answer))

    def _give_up(self) -> int | None:
        """End the child; the next grammar gets another."""
        child, self._child = self._child, None
        assert child is not None  # noqa: S101
        assert self._end is not None  # noqa: S101
        self._end()
        return child.returncode


def _paths() -> list[str]:
    """Where this process was told to find packages."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _write(descriptor: int, content: bytes) -> None:
    """All of it; the child reads whatever it is busy with."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_line(descriptor: int, deadline_s: float) -> bytes:
    """A line, empty at the end of the stream.

    Raises:
        TimeoutError: There was none in time.
    """
    line = bytearray()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while not line.endswith(b"\n"):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise TimeoutError
        part = os.read(descriptor, 1 << 16)
        if not part:
            return b""
        line += part
    return bytes(line)


# The child.


def main() -> None:
    """Try grammars until standard input ends, which also ends what is being compiled."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal's Ctrl-C is the server's to answer
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no file, but a question
        begun_bytes = int(file.read().split()[0]) * resource.getpagesize()
    most_bytes = begun_bytes + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.stack_size(_STACK_BYTES)
    threading.Thread(target=_answer, args=(questions,), daemon=True).start()
    for line in sys.stdin.buffer:
        questions.put(line)
    os._exit(0)  # whatever is being compiled


def _answer(questions: queue.SimpleQueue[bytes]) -> None:
    vocabulary: Any = None
    vocab_size = 0
    while True:
        question = json.loads(questions.get())
        problem = ""
        if "tokenizer" in question:
            vocab_size = question["vocab_size"]
            vocabulary = read_vocabulary(question["tokenizer"], vocab_size, question["ends"])
        else:
            try:
                first_mask(compile_grammar(vocabulary, question["grammar"]), vocab_size)
            except GrammarError as error:
                problem = str(error) or "it cannot be compiled"
        sys.stdout.write(json.dumps(problem) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
