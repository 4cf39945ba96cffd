"""Where Prometheus finds the servers behind replicas: one file each, for its file_sd.

Owns the files and their form. A replica that was killed could not remove its own, so whoever comes
to the same host removes what names a process that is gone. Knows nothing of Ray.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from artifacts.digest import write_atomically


class Target:
    """One server's file, below a folder that Prometheus reads."""

    def __init__(self, folder: Path, pid: int) -> None:
        self._folder = folder
        self._path = folder / f"{socket.gethostname()}-{pid}.json"

    def announce(self, address: str, labels: dict[str, str]) -> None:
        """Tell where its metrics are (``host:port``), and what else is to be known of it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_dead()
        content = json.dumps([{"targets": [address], "labels": labels}]).encode()
        # In the same folder, and under a name that no pattern of Prometheus's matches.
        write_atomically(self._path, content, scratch=self._folder, mode=0o644)

    def remove(self) -> None:
        """It serves no more."""
        self._path.unlink(missing_ok=True)

    def _remove_dead(self) -> None:
        for path in self._folder.glob(f"{socket.gethostname()}-*.json"):
            pid = path.stem.rpartition("-")[2]
            if pid.isdecimal() and not _lives(int(pid)):
                path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
