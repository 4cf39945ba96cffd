"""A real Prometheus scrapes a real server, and the documented queries compare its variants."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from server.comparison.server_process import ROOT, ServerProcess
from tests.system.prometheus import ask, get, keep_busy, scraping, wait_for

pytestmark = pytest.mark.system

VARIANTS = {"baseline", "int8", "int4"}
LOAD_S = 8.0
LATENCIES = (
    "time_to_first_token",
    "inter_token_latency",
    "request_duration",
    "queue",
    "prefill",
    "decode",
)


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
    with scraping(server, tmp_path_factory.mktemp("prometheus")) as url:
        keep_busy(server, VARIANTS, LOAD_S)
        yield url


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


def test_exemplars_lead_from_a_latency_to_its_request(
    prometheus: str, server: ServerProcess
) -> None:
    """Prometheus takes the page with its exemplars, and gives back the id of a caller's request."""
    with grpc.insecure_channel(server.target) as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        request = pb.GenerateRequest(
            variant="int4", text="x", sampling=pb.SamplingParameters(max_tokens=4, ignore_eos=True)
        )
        stub.Complete(request, metadata=[("x-request-id", "look-here")], timeout=60)

    def found(family: str) -> bool:
        series = get(
            prometheus,
            "query_exemplars",
            query=f"inference_{family}_seconds_bucket",
            start="0",
            end="9999999999",
        )
        return any(
            exemplar["labels"] == {"request_id": "look-here"}
            for one in series
            if one["seriesLabels"]["variant"] == "int4"
            for exemplar in one["exemplars"]
        )

    for family in LATENCIES:
        wait_for(lambda family=family: found(family))
    assert not found("step")  # a step is nobody's own


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
