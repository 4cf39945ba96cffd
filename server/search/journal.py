"""The journal file of a study, such that a process that is killed leaves it as good as it was.

Optuna's own locks are files that a killed process leaves behind: everybody else then waits for half
a minute. Here the lock is the operating system's, and a line that was cut off is dropped. Knows
nothing of what a journal says.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

_BEGINNING = b'{"op_code":'


class _Lock(JournalFileOpenLock):
    """Held by at most one process, and by none that is gone."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))

    def acquire(self) -> bool:
        """Wait for it."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()


def open_journal(path: Path) -> JournalFileBackend:
    """Open a journal, made where it is missing.

    Raises:
        OSError: It cannot be made or written.
        ValueError: It is some other file, which is left as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _Lock(path)
    lock.acquire()
    try:
        with path.open("ab+") as journal:
            journal.seek(0)
            content = journal.read()
            if content and not content.startswith(_BEGINNING):
                raise ValueError("This is no journal.")
            if not content.endswith(b"\n"):
                journal.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
    return JournalFileBackend(str(path), lock_obj=lock)
