"""The class of instruction set that a quality figure was measured on.

int8 kernels differ between classes (without VNNI, products of unsigned and signed bytes are summed
in 16 bits and saturate), so a figure from one class says little about another. Knows nothing of
models.
"""

from __future__ import annotations

import platform
from pathlib import Path

_X86_CLASSES = (
    ("amx", {"amx_int8"}),
    ("avx512-vnni", {"avx512f", "avx512_vnni"}),
    ("avx-vnni", {"avx2", "avx_vnni"}),
    ("avx512", {"avx512f"}),
    ("avx2", {"avx2"}),
)
# Their instruction for unsigned times signed bytes sums four products in 32 bits, at once.
_EXACT = frozenset({"x86_64-amx", "x86_64-avx512-vnni", "x86_64-avx-vnni"})
_ARM_CLASSES = (("i8mm", {"i8mm"}), ("dotprod", {"asimddp"}))


def isa_class(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str | None = None) -> str:
    """Name this machine's class, for example ``x86_64-avx2``."""
    machine = machine or platform.machine()
    try:
        flags = _flags(cpuinfo.read_text())
    except OSError:
        flags = set()
    classes = _ARM_CLASSES if machine in {"aarch64", "arm64"} else _X86_CLASSES
    for name, needed in classes:
        if needed <= flags:
            return f"{machine}-{name}"
    return f"{machine}-base"


def saturates(isa: str) -> bool:
    """Whether sums of unsigned times signed bytes saturate there, from 16 bits on."""
    return isa.startswith("x86_64-") and isa not in _EXACT


def _flags(text: str) -> set[str]:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return set(value.split())
    return set()
