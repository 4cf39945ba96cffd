"""Other people's work is told apart from our own."""

from __future__ import annotations

from pathlib import Path

from server.comparison.load import Load, busy_s
from server.comparison.machine import processor_fields

_TICKS_PER_S = 100


def test_busy_leaves_idle_and_waiting_out() -> None:
    """Everything counts but idle and iowait; guest time is inside user time already."""
    assert busy_s("cpu 100 200 300 9999 9999 10 20 30 77 88\ncpu0 1", _TICKS_PER_S) == 6.6


class _Machine:
    """A /proc/stat and a clock that a test moves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = 0.0
        self.work(0.0)

    def work(self, busy_s: float) -> None:
        self.path.write_text(f"cpu {round(busy_s * 100)} 0 0 0 0 0 0 0 0 0\n")


def _load(machine: _Machine, busy_of_window: list[float]) -> Load:
    done_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal done_s
        machine.now_s += seconds
        done_s += busy_of_window.pop(0)
        machine.work(done_s)

    return Load(machine.path, clock=lambda: machine.now_s, sleep=sleep, ticks_per_s=_TICKS_PER_S)


def test_span_subtracts_own_work(tmp_path: Path) -> None:
    """Three busy seconds of which two are ours leave half a core in two seconds."""
    machine = _Machine(tmp_path / "stat")
    own = [0.0]
    others = _load(machine, []).span(lambda: own[0])
    machine.now_s, own[0] = 2.0, 2.0
    machine.work(3.0)
    assert others() == 0.5


def test_waits_until_a_window_is_quiet(tmp_path: Path) -> None:
    """Two busy windows are waited out."""
    machine = _Machine(tmp_path / "stat")
    assert _load(machine, [1.5, 0.4, 0.0]).wait_quiet(60.0)
    assert machine.now_s == 3.0


def test_gives_up_waiting_for_quiet(tmp_path: Path) -> None:
    """A machine that stays busy is said to be so."""
    machine = _Machine(tmp_path / "stat")
    assert not _load(machine, [1.0] * 9).wait_quiet(3.0)


def test_processor_is_described_by_its_first_core() -> None:
    """Later cores do not overwrite it."""
    text = "processor\t: 0\nmodel name\t: A\nflags\t: avx2 fma\n\nprocessor\t: 1\nmodel name\t: B\n"
    assert processor_fields(text) == {"processor": "0", "model name": "A", "flags": "avx2 fma"}
