"""Grammars that would take the server's process with them, and those that come after them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import llguidance
import psutil
import pytest

from server.calls import FormatKind, ResponseFormat
from server.errors import OverloadedError
from server.grammar_compiler import GrammarError
from server.grammar_trial import GrammarTrial, TrialEndedError, Vocabulary
from server.grammars import Grammars
from server.selection import require_serving
from tests.server.conftest import DEMO_TOKENIZER

if TYPE_CHECKING:
    from tests.server.conftest import Views

# Each rule is two of the next one: compiling it goes as deep as there are rules.
DEEP = "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(3000)) + '\nr3000: "a"'

HANGING = """
import time
import server.grammar_trial as trial

compile_grammar = trial.compile_grammar

def compile_slowly(vocabulary, grammar):
    if "hang" in grammar:
        time.sleep(600)
    return compile_grammar(vocabulary, grammar)

trial.compile_grammar = compile_slowly
trial.main()
"""


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(DEMO_TOKENIZER.read_text(encoding="utf-8"), 4096, (0,))


def lark(text: str) -> str:
    grammar: str = llguidance.LLMatcher.grammar_from_lark(text)
    return grammar


def child_of(trial: Any) -> psutil.Process:
    return psutil.Process(trial._child.pid)


def test_a_grammar_that_exhausts_the_stack_costs_a_child_and_nothing_else(
    vocabulary: Vocabulary,
) -> None:
    """It is refused, again and again, and the next one is compiled."""
    trial = GrammarTrial()
    for _ in range(2):
        with pytest.raises(TrialEndedError, match="too deeply nested"):
            trial.check(vocabulary, lark(DEEP))
        trial.check(vocabulary, lark('start: "a"+'))


def test_the_same_grammar_ends_a_process_that_does_not_try_it_first() -> None:
    """Were this to fail, the trial could go."""
    program = (
        "import sys, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "from server.grammar_compiler import compile_grammar, read_vocabulary\n"
        "vocabulary = read_vocabulary(open(sys.argv[1]).read(), 4096, (0,))\n"
        "compile_grammar(vocabulary, sys.stdin.read())"
    )
    command = [sys.executable, "-c", program, str(DEMO_TOKENIZER)]
    ended = subprocess.run(command, input=lark(DEEP), text=True, capture_output=True, check=False)
    assert ended.returncode < 0


def test_a_grammar_that_never_ends_is_given_up(vocabulary: Vocabulary) -> None:
    """Llguidance cannot be interrupted; its process can be ended."""
    trial = GrammarTrial((sys.executable, "-c", HANGING), longest_s=1.0)
    trial.check(vocabulary, lark('start: "a"'))
    hanging = child_of(trial)
    with pytest.raises(TrialEndedError, match=r"took more than 1 s"):
        trial.check(vocabulary, lark('start: "hang"'))
    assert not hanging.is_running()
    trial.check(vocabulary, lark('start: "b"'))


def test_a_wrong_grammar_costs_no_child(vocabulary: Vocabulary) -> None:
    """What llguidance itself refuses is told in its words."""
    trial = GrammarTrial()
    trial.check(vocabulary, lark('start: "a"'))
    child = child_of(trial)
    with pytest.raises(GrammarError, match="nothing"):
        trial.check(vocabulary, lark("start: nothing"))
    assert child_of(trial) == child


def test_a_child_that_compiles_ends_with_its_standard_input(vocabulary: Vocabulary) -> None:
    """A server that was killed leaves none, whatever was being compiled."""
    trial: Any = GrammarTrial((sys.executable, "-c", HANGING), longest_s=1.0)
    trial._require(vocabulary)
    child = trial._child
    child.stdin.write(b'{"grammar": "hang"}\n')
    time.sleep(0.1)
    child.stdin.close()
    assert child.wait(20) == 0


def test_a_trial_that_is_dropped_leaves_no_child(vocabulary: Vocabulary) -> None:
    """Its child ends with it."""
    trial = GrammarTrial()
    trial.check(vocabulary, lark('start: "a"'))
    child = child_of(trial)
    assert child.is_running()
    del trial
    assert not child.is_running()


class Counting(GrammarTrial):
    """Holds each trial until it is let go, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.tried: list[str] = []

    def check(self, vocabulary: Vocabulary, grammar: str) -> None:
        self.tried.append(grammar)
        self.let_go.wait(30)
        super().check(vocabulary, grammar)


async def test_who_wants_the_same_format_waits_for_the_same_compilation(catalog: Views) -> None:
    """A hundred at once are tried once; one that leaves takes it from nobody."""
    trial = Counting()
    serving = require_serving(catalog.views["baseline"])
    with ThreadPoolExecutor(1) as executor:
        grammars = Grammars(executor, trial)
        wanted = ResponseFormat(FormatKind.REGEX, "a+")
        waiting = [asyncio.create_task(grammars.compile(wanted, serving)) for _ in range(100)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        trial.let_go.set()
        made = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(made[0], asyncio.CancelledError)
    assert all(callable(one) for one in made[1:])
    assert len(trial.tried) == 1


async def test_too_many_different_formats_are_refused_and_none_is_lost(catalog: Views) -> None:
    """Those that were taken are compiled once the one in front has ended."""
    trial = Counting()
    serving = require_serving(catalog.views["baseline"])
    with ThreadPoolExecutor(1) as executor:
        grammars = Grammars(executor, trial)
        waiting = [
            asyncio.create_task(
                grammars.compile(ResponseFormat(FormatKind.REGEX, f"a{{{n + 1}}}"), serving)
            )
            for n in range(40)
        ]
        await asyncio.sleep(0.01)
        trial.let_go.set()
        made = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(one, OverloadedError) for one in made] == [False] * 32 + [True] * 8
    assert all(callable(one) for one in made[:32])
