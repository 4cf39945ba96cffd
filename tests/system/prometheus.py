"""A real Prometheus beside a real server, and what can be asked of it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from server.comparison.server_process import ServerProcess

SCRAPE_S = 1
PROMPT = "def fibonacci(n):"


@contextlib.contextmanager
def scraping(server: ServerProcess, folder: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes the server, exemplars included."""
    job = {"job_name": "inference-unlimited", "static_configs": [{"targets": [host_of(server)]}]}
    config = folder / "prometheus.yml"
    interval = {"scrape_interval": f"{SCRAPE_S}s"}
    config.write_text(json.dumps({"global": interval, "scrape_configs": [job]}))
    with running(config, folder) as url:
        yield url


def host_of(server: ServerProcess) -> str:
    """Where its metrics are, as Prometheus writes targets."""
    return urllib.parse.urlparse(server.metrics_url).netloc


@contextlib.contextmanager
def running(config: Path, folder: Path, targets: int = 1) -> Iterator[str]:
    """The address of a Prometheus with a config, once it has scraped so many targets."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        _wait_until_scraping(f"http://{address}", process, targets)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_scraping(url: str, process: subprocess.Popen[bytes], targets: int) -> None:
    def is_up() -> bool:
        try:
            return [sample["value"][1] for sample in ask(url, "up")] == ["1"] * targets
        except urllib.error.URLError:
            assert process.poll() is None
            return False

    wait_for(is_up)


def wait_for(look: Callable[[], object], timeout_s: float = 60) -> None:
    """Look until there is something to be seen."""
    deadline_s = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def get(url: str, path: str, **parameters: str) -> Any:
    """What a path of Prometheus's API answers."""
    encoded = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(  # noqa: S310 - our own Prometheus
        f"{url}/api/v1/{path}?{encoded}", timeout=10
    ) as answer:
        return json.load(answer)["data"]


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """The samples of a query, now."""
    found: list[dict[str, Any]] = get(url, "query", query=query)["result"]
    return found


def keep_busy(server: ServerProcess, variants: set[str], seconds: float) -> None:
    """Ask each variant (``""``: whichever is routed to) one request after another for a while."""
    end_s = time.monotonic() + seconds

    def keep_asking(variant: str) -> None:
        with grpc.insecure_channel(server.target) as channel:
            stub: Any = inference_pb2_grpc.InferenceStub(channel)
            request = pb.GenerateRequest(
                variant=variant,
                text=PROMPT,
                sampling=pb.SamplingParameters(max_tokens=16, ignore_eos=True),
            )
            while time.monotonic() < end_s:
                stub.Complete(request, timeout=60)

    with ThreadPoolExecutor(len(variants)) as pool:
        list(pool.map(keep_asking, variants))
