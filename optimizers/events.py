"""The child's side of the protocol: events out on a descriptor of their own, the end of stdin in.

Owns standard output's descriptor, which libraries would otherwise print into, and the watch over
standard input, whose end means that nobody waits for this build any more. Knows nothing of what is
built.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import IO

from artifacts.protocol import BuildEvent, Progress

ORPHANED = 75  # EX_TEMPFAIL of sysexits.h: the parent is gone, ask again
_STEP = 0.01  # of a stage; finer progress is not worth a line


def take_stdout() -> IO[bytes]:
    """Keep descriptor 1 for the protocol, and send what libraries print to standard error."""
    sys.stdout.flush()
    protocol = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return protocol


def exit_when_closed(descriptor: int) -> None:
    """End this process as soon as ``descriptor`` (standard input) is closed by the parent."""

    def watch() -> None:
        while os.read(descriptor, 4096):
            pass
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="stdin-watch", daemon=True).start()


class Events:
    """Writes events as JSON lines; at most one progress line per percent and message."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._last = ("", -1.0, "")

    def send(self, event: BuildEvent) -> None:
        """Write one event, whole."""
        with self._lock:
            self._out.write(event.model_dump_json().encode() + b"\n")

    def progress(self, stage: str, fraction: float, message: str) -> None:
        """Tell how far a stage is, unless that says nothing new."""
        fraction = min(max(fraction, 0.0), 1.0)
        last_stage, last_fraction, last_message = self._last
        same = stage == last_stage and message == last_message
        if same and abs(fraction - last_fraction) < _STEP:
            return
        self._last = (stage, fraction, message)
        self.send(Progress(stage=stage, fraction=fraction, message=message))
