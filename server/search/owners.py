"""Who works at a trial, and whether they still do.

A process that was killed leaves its trial running in the storage. On the same machine the process
table tells; of another machine only that nothing was heard of it for long. Knows nothing of trials.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

SILENT_S = 300.0
"""Whoever is on another machine and says nothing for this long is gone."""


@dataclass(frozen=True, slots=True)
class Owner:
    """One process.

    Attributes:
        host: The machine's name, for people.
        place: Machine, boot and process namespace: where ``pid`` means something.
        pid: The process's id.
        started: When it started, in clock ticks since boot; ids are used again.
    """

    host: str
    place: str
    pid: int
    started: int

    @classmethod
    def this(cls, proc: Path = Path("/proc")) -> Self:
        """The process that runs this."""
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (proc / "self/ns/pid").readlink()
        host = platform.node()
        pid = os.getpid()
        return cls(host, f"{host} {boot} {namespace}", pid, _started(proc, pid) or 0)

    @classmethod
    def from_json(cls, content: Any) -> Self | None:
        """Read what ``as_json`` gave; None when it is something else."""
        try:
            return cls(**content)
        except TypeError:
            return None

    def as_json(self) -> dict[str, Any]:
        """For the storage."""
        return asdict(self)


def is_gone(owner: Owner | None, silent_s: float, this: Owner, proc: Path = Path("/proc")) -> bool:
    """Whether nobody works at it any more.

    Args:
        owner: Who began; None when the storage does not say.
        silent_s: Seconds since it was last heard of.
        this: Who asks.
        proc: The process table.
    """
    if owner is not None and owner.place == this.place:
        return _started(proc, owner.pid) != owner.started
    return silent_s > SILENT_S


def _started(proc: Path, pid: int) -> int | None:
    """When a process started, None when there is none or it only waits to be buried."""
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
