"""A child process that is spoken to in lines and never outlives the server.

Owns starting, feeding, watching and ending it with all that it started. It exits when its stdin
closes, which the kernel does even for a server that was killed. It is exec'd, never forked, so
torch's memory and its crashes stay on the other side. Knows nothing of what is asked of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sysconfig
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Self

import structlog

import artifacts
from server.errors import OptimizerError

_log = structlog.get_logger(__name__)

_LINE_BYTES = 1 << 20  # longest protocol line
_TAIL_LINES = 30  # of stderr, kept for the error
_STDERR_LINE = 500  # characters kept of one line
_LINE_ENDS = re.compile(rb"[\r\n]+")
_LEAVE_S = 5.0  # how long a child may take to exit once its stdin is closed
_LOOK_S = 0.01  # how often a child that is about to exit is looked at
_LOWEST_PRIORITY = 19


class Child:
    """One running child and what it said on stderr."""

    def __init__(self, process: asyncio.subprocess.Process, variant: str) -> None:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise OptimizerError("The optimizer was started without pipes. This is a bug.")
        self._process = process
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._variant = variant
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._is_killed = False
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(
        cls, command: Sequence[str], *, threads: int | None = None, variant: str = ""
    ) -> Self:
        """Exec a command with pipes to it, and ``threads`` as the bound of its libraries' pools."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            env=_environment(threads),
            # A group of its own: Ctrl-C in a terminal is the server's to answer, and all that the
            # child starts can be ended. No session of its own: where Linux shares the processor out
            # by session, priorities count within one alone. uvloop has no other way to say so.
            preexec_fn=os.setpgrp,
        )
        return cls(process, variant)

    def lower_priority(self) -> None:
        """Take processor time that nobody else wants, and give it up at once."""
        # Right after exec the child is one thread, and later ones inherit what it has.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _LOWEST_PRIORITY)
            if hasattr(os, "SCHED_IDLE"):
                os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))

    async def tell(self, line: str) -> None:
        """Write one line; stdin stays open, since its end is the child's signal to go."""
        # A child that is already gone is reported by how it ended, not by this.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._stdin.write(line.encode() + b"\n")
            await self._stdin.drain()

    async def ask(self, question: str) -> bytes:
        """Write all, end stdin, read all."""
        await self.tell(question)
        self._stdin.close()
        return await self._stdout.read()

    async def lines(self) -> AsyncIterator[bytes]:
        """Protocol lines until the child closes its end.

        A line without its end is where the child died in the middle of a word: it is none.
        """
        while True:
            try:
                line = await self._stdout.readline()
            except ValueError as error:  # longer than the limit
                raise OptimizerError(f"The optimizer's answer is too long: {error}.") from error
            if not line.endswith(b"\n"):
                return
            yield line

    async def ending(self) -> str:
        """How the child ended, as the rest of a sentence."""
        status = await self._exited()
        self._kill_group()  # whoever is left would hold stderr open
        await self._listening
        said = f" Its last words:\n{chr(10).join(self._tail)}" if self._tail else ""
        if status < 0:
            return f"was killed by {_signal_name(-status)}.{said}"
        return f"ended with status {status}.{said}"

    async def died(self, act: str, variant: str) -> OptimizerError:
        """The error of a build, or a judge, that ended without a last event."""
        ending = await self.ending()
        by_signal = self._process.returncode == -signal.SIGKILL
        return OptimizerError(
            f"The {act} of variant {variant!r} {ending}",
            code=f"{act}_{'killed' if by_signal else 'died'}",
            remedy="SIGKILL is most often the system running out of memory: give it more, or name "
            "a smaller model; a new start resumes at the last finished stage."
            if by_signal
            else "Start again to resume at the last finished stage.",
        )

    async def end(self) -> None:
        """Close stdin, wait a moment, then kill; leaves no process of the group and no task."""
        self._stdin.close()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._exited()
        except TimeoutError:
            pass
        finally:
            self._kill_group()
            await self._process.wait()
            self._listening.cancel()

    async def _exited(self) -> int:
        """The child's own status; ``wait`` would also wait for whoever else holds its pipes."""
        while (status := self._process.returncode) is None:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(_LOOK_S)
        return status

    def _kill_group(self) -> None:
        """Kill the child and whatever it started, which need not notice that the child is gone.

        The child leads a group of its own. Its number is nobody else's while a member is left,
        also once the child itself was waited for; afterwards it may be, so it is used once only
        and right away.
        """
        if not self._is_killed:
            self._is_killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _listen(self) -> None:
        """Pass stderr on to the log line by line, and keep its tail."""
        rest = b""
        while chunk := await self._stderr.read(65536):
            *lines, rest = _LINE_ENDS.split(rest + chunk)
            for line in lines:
                self._heard(line)
            rest = rest[-_LINE_BYTES:]
        self._heard(rest)

    def _heard(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()[:_STDERR_LINE]
        if text:
            self._tail.append(text)
            _log.debug("optimizer says", variant=self._variant or None, line=text)


def _environment(threads: int | None) -> dict[str, str]:
    environment = dict(os.environ)
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(threads)
    root = str(Path(artifacts.__file__).resolve().parent.parent)
    if root != sysconfig.get_path("purelib"):  # a checkout that may not be installed
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (root, environment.get("PYTHONPATH")) if part
        )
    return environment


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
