"""``python -m server.comparison.kept serve ...``: the command line, kept alive by its parent.

The server is asked to stop when its standard input closes, so that whoever measures it leaves
nothing behind, however it ends itself. Knows nothing of what the server does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from server.cli import main


def _stop_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    main()
