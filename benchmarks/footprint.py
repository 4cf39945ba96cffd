"""What a server and its children take up while they work: memory per process, and files.

Owns the watching, from /proc and the folders' listings, in a thread of its own. Knows nothing of
what the processes do.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_EVERY_S = 0.05
_KIB = 1 << 10


@dataclass(slots=True)
class Footprint:
    """Watches a process, its descendants and a folder, from ``with`` on.

    Attributes:
        root: Of the process.
        folder: What is written where.
        peaks: By what a process is called, the most memory that one of them had resident at a time.
        together: The most that all of them had at one moment.
        files: By inode, the largest size that a file was seen with.
    """

    root: int
    folder: Path
    peaks: dict[str, int] = field(default_factory=dict)
    together: int = 0
    files: dict[int, int] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="footprint", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def largest_file(self, but: Path) -> int:
        """The largest file that was there for a while, but for those in one folder."""
        kept = {path.stat().st_ino for path in but.iterdir()}
        return max((size for inode, size in self.files.items() if inode not in kept), default=0)

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._look_at_processes()
            self._look_at_files()

    def _look_at_processes(self) -> None:
        together = 0
        for pid in _family(self.root):
            with contextlib.suppress(OSError, KeyError, ValueError):  # it is about to end
                status = _status(pid)
                name = "server" if pid == self.root else _act(pid)
                if name is None:
                    continue  # about to become an optimizer
                self.peaks[name] = max(self.peaks.get(name, 0), status["VmHWM"])
                together += status["VmRSS"]
        self.together = max(self.together, together)

    def _look_at_files(self) -> None:
        for path in self.folder.rglob("*"):
            with contextlib.suppress(OSError):  # gone meanwhile
                state = path.lstat()
                if path.is_file():
                    known = self.files.get(state.st_ino, 0)
                    self.files[state.st_ino] = max(known, state.st_size)


def _family(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                yield from _family(int(child))


def _status(pid: int) -> dict[str, int]:
    """Sizes of a process's memory in bytes."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * _KIB for words in lines if words[-1] == "kB"}


def _act(pid: int) -> str | None:
    """What an optimizer child does: the last word of its command."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    return words[-1] if "optimizers" in words else None
