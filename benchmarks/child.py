"""Child processes of the bench: started, asked, paused, measured and ended, all bounded in time.

Every child leads a process group of its own, so that its own children end with it; should the bench
itself be killed, the kernel wakes and hangs up groups that were paused. Knows nothing of what the
children compute.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

_END_S = 20.0  # from being asked politely to being killed
_TAIL_LINES = 12


class ChildError(Exception):
    """A child failed, ended or did not answer in time; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an ended process and the children that it waited for have used.

    Attributes:
        peak_bytes: The most memory that any one of them held.
        cpu_s: Processor seconds of all of them.
    """

    peak_bytes: int
    cpu_s: float


class Child:
    """One running process; its standard output is read line by line, its errors go to ``log``."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = log.stem
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.started_s = time.monotonic()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                process_group=0,
            )
        self._status = psutil.Process(self._process.pid)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.usage: Usage | None = None
        """Known once it has ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def line(self, timeout_s: float) -> str:
        """The next line of its output.

        Raises:
            ChildError: None came in time, or the process ended.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise self.failed(f"did not answer within {timeout_s:.0f} s") from None
        if line is None:
            raise self.failed("ended")
        return line

    def ask(self, op: str, *, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Have a worker carry out an operation.

        Raises:
            ChildError: It failed, or took too long.
        """
        if self._process.stdin is None or self._process.stdin.closed:
            raise self.failed("has ended")
        try:
            self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.failed("ended") from None
        answer: dict[str, Any] = json.loads(self.line(timeout_s))
        if "error" in answer:
            raise self.failed(f"could not {op}: {answer['error']}")
        return answer

    def pause(self) -> None:
        """Keep it from computing; its memory stays."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it compute again."""
        self._signal(signal.SIGCONT)

    def status(self) -> str:
        """What the kernel says that it does; one of psutil's ``STATUS_`` words."""
        return str(self._status.status())

    def cpu_s(self) -> float:
        """Processor seconds of the process so far, all threads, without its children."""
        times = self._status.cpu_times()
        return float(times.user + times.system)

    def peak_bytes(self) -> int:
        """The most memory that it ever held (``VmHWM``)."""
        return self._memory("VmHWM")

    def resident_bytes(self) -> int:
        """The memory that it holds now (``VmRSS``): its own, and what it has mapped and read."""
        return self._memory("VmRSS")

    def _memory(self, field: str) -> int:
        return memory_bytes(Path(f"/proc/{self._process.pid}/status").read_text(), field)

    def end(self) -> None:
        """Ask it to end, and kill it when it does not."""
        if self._process.returncode is not None:
            return
        self.resume()
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._signal(signal.SIGTERM)
        killer = threading.Timer(_END_S, self._signal, (signal.SIGKILL,))
        killer.start()
        try:
            _, status, usage = os.wait4(self._process.pid, 0)
        finally:
            killer.cancel()
        self._process.returncode = os.waitstatus_to_exitcode(status)
        # Whatever it started ends with it, or would hold its output open.
        self._signal(signal.SIGKILL)
        self._reader.join(_END_S)
        self.usage = Usage(usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read(self) -> None:
        if self._process.stdout is not None:
            with self._process.stdout as lines:
                for line in lines:
                    self._lines.put(line)
        self._lines.put(None)

    def failed(self, what: str) -> ChildError:
        """An error that says what the process did, with the end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return ChildError("\n  ".join([f"{self.name} {what}", f"{self._log} ends:", *lines]))


def memory_bytes(status: str, field: str) -> int:
    """Read a size, such as ``VmHWM``, from the text of ``/proc/PID/status``.

    Raises:
        ChildError: The process has ended, so nothing is said.
    """
    for line in status.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ChildError("A process ended before its memory was read.")
