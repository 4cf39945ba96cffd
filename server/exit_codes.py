"""The process's exit codes, the same for every command; documented in docs/command-line.md."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    FAILURE = 1
    """It was understood and did not work: no variant could be built, a port is taken, ..."""
    USAGE = 2
    """The command line or the config is wrong."""
    UNREACHABLE = 3
    """No server answers at the target."""
    INTERRUPTED = 130
    """Ctrl-C or SIGTERM ended it early; what it had measured was shown."""
    HANG = 70
    """A step of the engine hung; a supervisor should start the server again."""
