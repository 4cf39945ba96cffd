"""What this machine lets the process use: memory and processor cores, cgroup limits included.

Reads Linux's ``/proc`` and ``/sys`` below a root that is an argument. Server and optimizer both
size their work by it. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def available_memory_bytes(root: Path = ROOT) -> int:
    """Bytes that can still be taken without swapping and within the cgroup's limit."""
    available = _meminfo_available(root)
    for folder in _cgroup_folders(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            cache = _statistic(folder / "memory.stat", "inactive_file")
            available = min(available, max(limit - used + cache, 0))
    return available


def usable_cores(root: Path = ROOT) -> int:
    """Physical cores that the process may use; siblings of one core count once."""
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(root, cpu) for cpu in allowed}
    quota = min(
        (cpus for folder in _cgroup_folders(root, "cpu") if (cpus := _quota(folder)) is not None),
        default=len(cores),
    )
    return max(min(len(cores), round(quota)), 1)


def _meminfo_available(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable; Linux 3.14 or newer is needed.")


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """This process's cgroup and its ancestors, of version 2 and of a version 1 controller."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        # In a container the path may be the host's, and only the mount's root exists.
        own = Path(path.lstrip("/"))
        yield mount
        yield from (mount / part for part in (own, *own.parents) if part != Path())


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)


def _quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        version_1 = _number(folder / "cpu.cfs_quota_us")  # -1 is no limit
        length = _number(folder / "cpu.cfs_period_us")
        return version_1 / length if version_1 and length else None
    return None if quota == "max" else int(quota) / int(period)


def _siblings(root: Path, cpu: int) -> str:
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    try:
        return topology.read_text().strip()
    except OSError:
        return str(cpu)


def give_memory_back() -> None:
    """Give what was freed back to the system; takes some milliseconds.

    glibc keeps freed blocks of tens of megabytes once it has seen one of that size freed, so a
    session's weights would stay counted as this process's. Elsewhere nothing is done.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
