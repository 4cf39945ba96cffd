"""One real server on the demo model for a module's tests, and what it must look like afterwards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from server.comparison.server_process import ServerProcess

_SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_STATUS = re.compile(r'status="(\w+)"')
# What a server that nothing is asked of has none of.
_GAUGES = (
    "inference_running_requests",
    "inference_waiting_requests",
    "inference_kv_cache_usage_ratio",
)


class Survivor:
    """A running server and how it is judged."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.process = psutil.Process(server.process.pid)

    def samples(self, name: str) -> dict[str, float]:
        """Values of a metric by their labels."""
        found = _SAMPLE.findall(self.server.get("/metrics")[1])
        return {labels: float(value) for metric, labels, value in found if metric == name}

    def peak_bytes(self) -> int:
        """The most memory that the process ever held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        return int(kilobytes) * 1024

    def ended(self) -> Counter[str]:
        """How many requests have ended with each status."""
        counted: Counter[str] = Counter()
        for labels, value in self.samples("inference_requests_total").items():
            counted[_STATUS.findall(labels)[0]] += int(value)
        return counted

    def is_idle(self) -> bool:
        """Whether no request holds anything."""
        return all(sum(self.samples(name).values()) == 0 for name in _GAUGES)

    def settle(self) -> None:
        """Wait until no request holds anything."""
        self.server.wait_for(lambda: self.is_idle() or None, 60)

    def check(self) -> None:
        """Nothing is left behind, and nothing was told that is nobody's to fix but ours."""
        assert self.server.process.poll() is None, self.server.log[-3000:]
        self.settle()
        assert "Traceback" not in self.server.log, self.server.log[-6000:]
        assert "internal_error" not in self.server.log, self.server.log[-6000:]


Serve = Callable[..., Survivor]


def demo_config(store: Path, **more: Any) -> dict[str, Any]:
    """Two variants of the demo, and texts short enough for many of them."""
    return {
        "model": "demo",
        "variants": {"baseline": [], "int8": [{"quantize": {"method": "dynamic"}}]},
        "store": str(store),
        "engine": {"max_length": 128, "slots": 4, "max_waiting": 16},
        **more,
    }


@pytest.fixture(scope="module")
def survivor(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Survivor]:
    """A server that must outlive the module's tests."""
    folder = tmp_path_factory.mktemp("survivor")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(demo_config(demo_store)), encoding="utf-8")
    with ServerProcess(config, stderr=folder / "server.log") as server:
        server.wait_ready()
        yield Survivor(server)
        assert server.stop() == 0
        assert "Traceback" not in server.log
