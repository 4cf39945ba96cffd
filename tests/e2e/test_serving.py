"""A real server on stored artifacts: requests, metrics, health, and what it must not import."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from server.comparison.server_process import ROOT, ServerProcess

VARIANTS = ["baseline", "int8", "int4"]


@pytest.fixture(scope="module")
def server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The embedded demo, served from its store, all variants ready."""
    with ServerProcess(
        None,
        stderr=tmp_path_factory.mktemp("server") / "server.log",
        # Every import is written to standard error, by the interpreter itself.
        environment={
            "INFERENCE_UNLIMITED_STORE": str(demo_store),
            "PYTHONPROFILEIMPORTTIME": "1",
        },
    ) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def ask(channel: grpc.Channel) -> Any:
    return inference_pb2_grpc.InferenceStub(channel)


def samples(server: ServerProcess) -> dict[tuple[str, ...], float]:
    """Metrics by name, variant and one further label's value."""
    status, page = server.get("/metrics")
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in {"model", "variant"}}
            key = (sample.name, sample.labels.get("variant", ""), *labels.values())
            found[key] = sample.value
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_generates(ask: Any, variant: str) -> None:
    """Text, ids and figures of a stream agree, whatever the variant's chain."""
    request = pb.GenerateRequest(
        variant=variant,
        text="def fibonacci(n):",
        sampling=pb.SamplingParameters(max_tokens=24, temperature=0),
    )
    messages = list(ask.Generate(request, timeout=60))
    ids = [token for message in messages for token in message.token_ids]
    finish = messages[-1].finish
    assert finish.variant == variant
    assert finish.usage.completion_tokens == len(ids) > 0
    assert finish.artifact
    detokenized = ask.Detokenize(pb.DetokenizeRequest(variant=variant, token_ids=ids))
    assert "".join(message.text for message in messages) == detokenized.text


def test_requests_show_in_the_variant_s_metrics_and_in_no_other_s(
    server: ServerProcess, ask: Any
) -> None:
    """Counters and histograms grow by exactly what was asked, under its own label."""
    before = samples(server)
    request = pb.GenerateRequest(
        variant="int4",
        text="import os",
        sampling=pb.SamplingParameters(max_tokens=10, ignore_eos=True),
    )
    for _ in range(3):
        ask.Complete(request, timeout=60)
    with pytest.raises(grpc.RpcError):
        ask.Complete(pb.GenerateRequest(variant="no-such", text="x"), timeout=60)
    after = samples(server)

    def growth(name: str, variant: str, *labels: str) -> float:
        return after[name, variant, *labels] - before.get((name, variant, *labels), 0.0)

    assert growth("inference_requests_total", "int4", "ok") == 3
    assert growth("inference_generated_tokens_total", "int4") == 30
    assert growth("inference_time_to_first_token_seconds_count", "int4") == 3
    assert growth("inference_inter_token_latency_seconds_count", "int4") == 27
    assert growth("inference_engine_seconds_total", "int4") > 0
    assert growth("inference_requests_total", "", "not_found") == 1
    assert growth("inference_generated_tokens_total", "baseline") == 0
    assert not any("no-such" in part for key in after for part in key)
    assert after["inference_running_requests", "int4"] == 0
    assert after["inference_kv_cache_usage_ratio", "int4"] == 0


def test_each_variant_s_artifact_is_described(server: ServerProcess) -> None:
    """Size and lineage differ as the chains do."""
    found = samples(server)
    sizes = [found["inference_variant_size_bytes", name] for name in VARIANTS]
    assert sizes[0] > sizes[1] > sizes[2] > 0
    chains = {key[-1] for key in found if key[0] == "inference_variant_info"}
    assert len(chains) == len(VARIANTS)


def test_health_says_serving_everywhere(server: ServerProcess, channel: grpc.Channel) -> None:
    """Both protocols agree, for the server and for each variant."""
    health = health_pb2_grpc.HealthStub(channel)
    for name in ["", *VARIANTS]:
        answer = health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert [server.get(path)[0] for path in ("/livez", "/healthz", "/readyz")] == [200] * 3
    states = {one["name"]: one["state"] for one in server.wait_ready()["variants"]}
    assert states == dict.fromkeys(VARIANTS, "ready")


def test_the_printed_command_works(server: ServerProcess) -> None:
    """What the server says to paste can be pasted."""
    line = server.wait_line(r"^  (inference-unlimited generate --prompt .*)$")
    match = re.fullmatch(r"inference-unlimited (generate --prompt 'def .*' --target (\S+))", line)
    assert match is not None
    assert match.group(2) == server.target
    arguments = shlex.split(match.group(1))  # as a shell would
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", *arguments, "--max-tokens", "5", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 5


def imported(server: ServerProcess) -> set[str]:
    """Top-level names of every module that the process has imported."""
    return set(re.findall(r"^import time:[^|]+\|[^|]+\| +(\w+)", server.log, re.MULTILINE))


def test_serving_a_stored_artifact_imports_no_torch(server: ServerProcess) -> None:
    """Torch's memory and start-up time belong to the optimizer's child alone."""
    names = imported(server)
    assert {"onnxruntime", "grpc", "server"} <= names  # imports are seen at all
    assert not names & {"torch", "transformers", "optimizers", "mobius"}
    mapped = {Path(entry.path).name for entry in psutil.Process(server.process.pid).memory_maps()}
    assert any("onnxruntime" in name for name in mapped)
    assert not any("torch" in name for name in mapped)


def test_a_stored_artifact_serves_within_seconds(
    demo_store: Path, launch: Any, write_config: Any
) -> None:
    """From the process's start to the first variant, and without a child.

    The bench's warm start measures the 3 s of an idle machine. Twice that is for a machine that is
    busy with other tests, and still tells this start from one that loads torch or builds.
    """
    config = write_config(model="demo", variants={"baseline": []}, store=str(demo_store))
    server = launch(config)
    server.wait_ready()
    assert samples(server)["inference_startup_seconds", "baseline", "ready"] < 6.0
    assert not server.children()


def test_an_idle_server_costs_no_processor_time(server: ServerProcess) -> None:
    """Nobody asks: the engine sleeps, and nothing spins."""
    process = psutil.Process(server.process.pid)
    before = process.cpu_times()
    process.cpu_percent()
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(1.5)
    after = process.cpu_times()
    assert (after.user + after.system) - (before.user + before.system) < 0.15
