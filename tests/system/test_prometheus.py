"""A real Prometheus scrapes a real server, and the documented queries compare its variants."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from server.comparison.server_process import ROOT, ServerProcess

pytestmark = pytest.mark.system

VARIANTS = {"baseline", "int8", "int4"}
LOAD_S = 8.0


def queries(page: str) -> list[str]:
    """Every query of a documentation page's PromQL blocks; blank lines part them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```promql\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    paragraphs = [paragraph for block in blocks for paragraph in block.split("\n\n")]
    return [re.sub(r"^#.*$", "", paragraph, flags=re.MULTILINE).strip() for paragraph in paragraphs]


@pytest.fixture(scope="module")
def server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(
        None,
        stderr=tmp_path_factory.mktemp("server") / "server.log",
        environment={"INFERENCE_UNLIMITED_STORE": str(demo_store)},
    ) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def prometheus(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus that has scraped the server under load."""
    folder = tmp_path_factory.mktemp("prometheus")
    host = urllib.parse.urlparse(server.metrics_url).netloc
    config = folder / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s"},
                "scrape_configs": [
                    {"job_name": "inference", "static_configs": [{"targets": [host]}]}
                ],
            }
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        _wait_until_scraping(f"http://{address}", process)
        _load(server)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_scraping(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        try:
            if [sample["value"][1] for sample in ask(url, "up")] == ["1"]:
                return
        except urllib.error.URLError:
            assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def _load(server: ServerProcess) -> None:
    """Keep every variant busy for a while."""
    end_s = time.monotonic() + LOAD_S

    def keep_asking(variant: str) -> None:
        with grpc.insecure_channel(server.target) as channel:
            stub: Any = inference_pb2_grpc.InferenceStub(channel)
            request = pb.GenerateRequest(
                variant=variant,
                text="def fibonacci(n):",
                sampling=pb.SamplingParameters(max_tokens=16, ignore_eos=True),
            )
            while time.monotonic() < end_s:
                stub.Complete(request, timeout=60)

    with ThreadPoolExecutor(len(VARIANTS)) as pool:
        list(pool.map(keep_asking, VARIANTS))


def ask(url: str, query: str) -> list[dict[str, Any]]:
    encoded = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(  # noqa: S310 - our own Prometheus
        f"{url}/api/v1/query?{encoded}", timeout=10
    ) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/metrics.md"])
def test_documented_queries_give_a_value_for_each_variant(prometheus: str, page: str) -> None:
    """Whoever pastes a query from the documentation sees every variant."""
    found = queries(page)
    assert found, f"{page} has no PromQL"
    for query in found:
        values = {
            sample["metric"].get("variant"): float(sample["value"][1])
            for sample in ask(prometheus, query)
        }
        assert set(values) == VARIANTS, query
        assert all(math.isfinite(value) and value >= 0 for value in values.values()), query


def test_a_query_for_no_such_family_gives_nothing(prometheus: str) -> None:
    """The check above can fail."""
    assert ask(prometheus, "sum by (variant) (inference_no_such_family)") == []


def test_engine_seconds_per_token_tell_variants_apart(prometheus: str) -> None:
    """The figure is a time of this machine's order, not a ratio of empty rates."""
    query = next(query for query in queries("docs/metrics.md") if "engine_seconds" in query)
    values = [float(sample["value"][1]) for sample in ask(prometheus, query)]
    assert all(1e-5 < value < 1 for value in values)


def check_metrics(page: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )


def test_promtool_finds_nothing_to_say(server: ServerProcess) -> None:
    """Names, units, help texts and types follow Prometheus's conventions."""
    checked = check_metrics(server.get("/metrics")[1])
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_promtool_would_find_a_bad_name() -> None:
    """The check above can fail."""
    checked = check_metrics("# TYPE latency_milliseconds gauge\nlatency_milliseconds 1\n")
    assert checked.returncode != 0
