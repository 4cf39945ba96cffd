"""What a figure was measured on: processor, instruction sets, memory, libraries.

Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from artifacts.host_figures import Host
from artifacts.isa import isa_class
from artifacts.machine import usable_cores

_LIBRARIES = ("onnxruntime", "numpy", "grpcio", "protobuf", "mobius-onnx", "torch", "transformers")
_ISA_FLAGS = frozenset(
    {"avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"}
    | {"avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"}
    | {"asimd", "asimddp", "i8mm", "bf16", "sve"}
)


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine, as far as it matters for speed."""

    processor: str
    isa: str
    flags: tuple[str, ...]
    cores: int
    memory_bytes: int
    system: str
    python: str
    libraries: dict[str, str]

    def host(self, threads: int) -> Host:
        """What a figure of speed belongs to when this many threads compute."""
        return Host(
            processor=self.processor,
            isa=self.isa,
            cores=threads,
            onnxruntime=self.libraries["onnxruntime"],
        )

    def as_json(self) -> dict[str, Any]:
        """For the results."""
        return asdict(self)


def this_machine(proc: Path = Path("/proc")) -> Machine:
    """Describe the machine that this process runs on."""
    fields = processor_fields((proc / "cpuinfo").read_text())
    flags = set((fields.get("flags") or fields.get("Features", "")).split())
    return Machine(
        processor=fields.get("model name", platform.machine()),
        isa=isa_class(proc / "cpuinfo"),
        flags=tuple(sorted(flags & _ISA_FLAGS)),
        cores=usable_cores(),
        memory_bytes=_memory_bytes((proc / "meminfo").read_text()),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        libraries=_versions(_LIBRARIES),
    )


def _versions(names: Iterable[str]) -> dict[str, str]:
    """Of the libraries that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def processor_fields(cpuinfo: str) -> dict[str, str]:
    """The fields of the first processor in ``/proc/cpuinfo``."""
    first = cpuinfo.strip().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory_bytes(meminfo: str) -> int:
    fields = {name: rest for name, _, rest in (x.partition(":") for x in meminfo.splitlines())}
    return int(fields["MemTotal"].split()[0]) * 1024
