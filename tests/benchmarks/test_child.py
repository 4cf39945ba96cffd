"""Child processes answer, pause, and end, whatever they do."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.child import Child, ChildError, memory_bytes

_WORKER = """
import time
from benchmarks.workers.protocol import answer_requests

def double(value):
    print("noise that is no answer")
    return {"value": 2 * value}

def refuse():
    raise ValueError("no such thing")

def spin():
    while True:
        pass

answer_requests({"double": double, "refuse": refuse, "spin": spin, "pause": time.sleep})
"""
_ROOT = Path(__file__).parents[2]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Child]:
    """Give a worker that is gone afterwards."""
    command = [sys.executable, "-c", _WORKER]
    log = tmp_path / "worker.log"
    with Child(command, cwd=_ROOT, environment=os.environ, log=log) as child:
        yield child


def test_worker_answers_and_prints_disturb_nothing(worker: Child) -> None:
    """What a library prints goes to the log."""
    assert worker.ask("double", timeout_s=30.0, value=21) == {"value": 42}
    assert worker.peak_bytes() >= worker.resident_bytes() > 1 << 20


def test_worker_survives_a_failed_operation(worker: Child) -> None:
    """A failure is told in its own words, and the next operation works."""
    with pytest.raises(ChildError, match="could not refuse: ValueError: no such thing"):
        worker.ask("refuse", timeout_s=30.0)
    assert worker.ask("double", timeout_s=30.0, value=1) == {"value": 2}


def test_child_that_does_not_answer_is_left_in_time_and_ends(worker: Child) -> None:
    """A busy child costs no more than its time, and ending it leaves nothing."""
    with pytest.raises(ChildError, match="did not answer within"):
        worker.ask("spin", timeout_s=0.5)
    worker.end()
    assert worker.usage is not None
    assert worker.usage.cpu_s > 0.1
    with pytest.raises(ChildError, match="ended"):
        worker.ask("double", timeout_s=5.0, value=1)


def test_paused_child_uses_no_processor_until_it_goes_on(worker: Child) -> None:
    """Whoever waits for a turn takes nothing from whoever has it."""
    worker.ask("double", timeout_s=30.0, value=1)
    with pytest.raises(ChildError):
        worker.ask("spin", timeout_s=0.2)
    worker.pause()
    _wait_for(lambda: worker.status() == psutil.STATUS_STOPPED)
    before = worker.cpu_s()
    time.sleep(0.3)
    assert worker.cpu_s() == before
    worker.resume()
    _wait_for(lambda: worker.cpu_s() > before)


def test_child_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The end of the log is part of the message."""
    command = [sys.executable, "-c", "raise SystemExit('out of luck')"]
    log = tmp_path / "broken.log"
    with (
        Child(command, cwd=_ROOT, environment=os.environ, log=log) as child,
        pytest.raises(ChildError, match=r"(?s)broken ended.*out of luck"),
    ):
        child.line(30.0)


def _wait_for(condition: object, timeout_s: float = 10.0) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_memory_is_read_in_bytes() -> None:
    """The kernel writes kibibytes."""
    status = "Name:\tx\nVmHWM:\t     12 kB\nVmRSS:\t 9 kB\n"
    assert memory_bytes(status, "VmHWM") == 12 * 1024
    assert memory_bytes(status, "VmRSS") == 9 * 1024
    with pytest.raises(ChildError, match="ended"):
        memory_bytes("Name:\tx\n", "VmRSS")
