"""Memory and cores that the process may use, cgroup limits included."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import machine

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 8 GiB available and no cgroup limit."""
    write(tmp_path / "proc/meminfo", f"MemTotal: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", "max\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "max 100000\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_limit_the_system_s_memory_counts(root: Path) -> None:
    """What Linux says is available can be taken."""
    assert machine.available_memory_bytes(root) == 8 * GIB


def test_a_cgroup_s_limit_counts_and_its_cache_is_free(root: Path) -> None:
    """A container that ignored its limit would be killed."""
    group = root / "sys/fs/cgroup"
    write(group / "memory.max", f"{4 * GIB}\n")
    write(group / "memory.current", f"{2 * GIB}\n")
    write(group / "memory.stat", f"anon 5\ninactive_file {1 * GIB}\n")
    assert machine.available_memory_bytes(root) == 3 * GIB


def test_the_tightest_ancestor_counts(root: Path) -> None:
    """A pod's limit lies above its container's."""
    write(root / "proc/self/cgroup", "0::/pod/container\n")
    write(root / "sys/fs/cgroup/pod/memory.max", f"{2 * GIB}")
    write(root / "sys/fs/cgroup/pod/memory.current", f"{GIB}")
    assert machine.available_memory_bytes(root) == GIB


def test_version_1_cgroups_count_too(root: Path) -> None:
    """Older hosts mount one tree per controller."""
    write(root / "proc/self/cgroup", "4:memory:/app\n1:cpu:/app\n")
    group = root / "sys/fs/cgroup/memory/app"
    write(group / "memory.limit_in_bytes", f"{3 * GIB}")
    write(group / "memory.usage_in_bytes", f"{GIB}")
    assert machine.available_memory_bytes(root) == 2 * GIB


def test_sibling_threads_are_one_core(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hyper-threads of a core do not multiply twice as fast."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for cpu in range(4):
        pair = "0,2" if cpu % 2 == 0 else "1,3"
        write(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", pair)
    assert machine.usable_cores(root) == 2


@pytest.mark.parametrize(("quota", "cores"), [("200000 100000", 2), ("50000 100000", 1)])
def test_a_cpu_quota_limits_the_cores(
    root: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    """More threads than the quota would be throttled in the middle of a step."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    write(root / "sys/fs/cgroup/cpu.max", quota)
    assert machine.usable_cores(root) == cores


def test_this_machine_has_memory_and_a_core() -> None:
    """The real files can be read."""
    assert machine.available_memory_bytes() > 1 << 20
    assert machine.usable_cores() >= 1
