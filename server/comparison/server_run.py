"""One variant of a config, served by a process of its own for as long as it is measured.

Owns the config that the process gets (that variant alone, on free loopback ports, without a
budget that would refuse it) and what the process took: seconds to load, memory. Artifacts are
built beforehand, so that no build is ever part of a start. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.comparison.scrape import scrape, total
from server.comparison.server_process import ServerProcess
from server.config.fields import Config, ServerSection

_START_S = 3600.0  # a variant that is not built yet may be built first
_KEPT = ("-P", "-m", "server.comparison.kept")
_DRAIN_S = 1.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ServerRun:
    """A server that serves one variant.

    Attributes:
        target: Where gRPC listens, ``host:port``.
        metrics_url: What is scraped.
        variant: The one that it serves.
        pid: Its process.
        load_s: Seconds that opening and warming up the artifact took.
        start_s: Seconds from the start of the process until it served.
    """

    target: str
    metrics_url: str
    variant: str
    pid: int
    load_s: float
    start_s: float

    def resident_bytes(self) -> int:
        """Memory that it holds now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_BYTES

    def peak_bytes(self) -> int:
        """The most memory that it ever held."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def cpu_s(self) -> float:
        """Processor seconds that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def running(config: Config, variant: str) -> AsyncIterator[ServerRun]:
    """Serve one variant of a config until the block is left.

    Raises:
        ServerProcessError: It does not come up, or does not serve the variant.
    """
    with tempfile.TemporaryDirectory(prefix="inference-unlimited-") as scratch:
        path = Path(scratch) / "config.yaml"
        path.write_text(yaml.safe_dump(config_of(config, variant), sort_keys=False))
        begun_s = time.monotonic()
        # Its output is read by a thread, and it is waited for in another: the loop stays free.
        process = ServerProcess(
            path, stderr=Path(scratch) / "server.log", program=_KEPT, folder=None
        )
        try:
            yield await asyncio.to_thread(_wait, process, variant, begun_s)
        finally:
            await asyncio.to_thread(process.__exit__)


def config_of(config: Config, variant: str) -> dict[str, Any]:
    """The config, as YAML has it, that serves one of its variants by itself."""
    content = config.model_dump(mode="json", exclude_none=True)
    content.pop("budget", None)
    chain = content["variants"][variant]
    if isinstance(chain, dict):  # the long form, which may hold a budget of its own
        chain = chain.get("chain", [])
    server = ServerSection(
        host="127.0.0.1", grpc_port=0, http_port=0, ops_port=0, drain_seconds=_DRAIN_S
    )
    return content | {
        "variants": {variant: chain},
        "traffic": {},
        "server": server.model_dump(mode="json", exclude_none=True),
        "log": {"level": "info", "format": "json"},
    }


def _wait(process: ServerProcess, variant: str, begun_s: float) -> ServerRun:
    (state,) = process.wait_ready(_START_S)["variants"]
    start_s = time.monotonic() - begun_s
    if state["state"] != "ready":
        raise process.failed(f"does not serve {variant!r}: {state['error']}")
    metrics = scrape(process.metrics_url)
    phases = [
        total(metrics, "inference_startup_seconds", variant=variant, phase=phase)
        for phase in ("load", "warm_up")
    ]
    return ServerRun(
        target=process.target,
        metrics_url=process.metrics_url,
        variant=variant,
        pid=process.process.pid,
        load_s=sum(phases),
        start_s=start_s,
    )
