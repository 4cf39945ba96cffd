"""The gRPC API through Ray Serve: answers, streams, errors, and what a lost replica costs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from benchmarks.ray_cluster import METADATA
from protos import inference_pb2 as pb
from tests.ray.conftest import VARIANTS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

PROMPT = "def fibonacci(n):"


def request(tokens: int, variant: str = "") -> pb.GenerateRequest:
    sampling = pb.SamplingParameters(max_tokens=tokens, ignore_eos=True, temperature=0)
    return pb.GenerateRequest(text=PROMPT, variant=variant, sampling=sampling)


def test_tokens_come_one_by_one(stub: Any) -> None:
    """A stream stays one from end to end: the first is here long before the last is made."""
    begun_s = time.monotonic()
    arrivals: list[float] = []
    tokens: list[int] = []
    for message in stub.Generate(request(300), metadata=METADATA, timeout=120):
        arrivals.append(time.monotonic() - begun_s)
        tokens += message.token_ids
    assert len(tokens) == 300
    assert len(arrivals) > 100
    assert arrivals[0] < arrivals[-1] / 4


def test_answers_are_those_of_the_plain_server(stub: Any, config: Path, tmp_path: Path) -> None:
    """Token by token, of every variant."""
    from protos import inference_pb2_grpc
    from server.comparison.server_process import ServerProcess

    with ServerProcess(config, stderr=tmp_path / "log") as server:
        server.wait_ready()
        with grpc.insecure_channel(server.target) as channel:
            plain: Any = inference_pb2_grpc.InferenceStub(channel)
            for variant in VARIANTS:
                wanted = plain.Complete(request(40, variant), timeout=60)
                found = stub.Complete(request(40, variant), metadata=METADATA, timeout=60)
                assert list(found.token_ids) == list(wanted.token_ids)
                assert found.finish.variant == wanted.finish.variant == variant


def test_variants_are_listed_as_one_server_would(stub: Any) -> None:
    """With the traffic of the config, whatever a replica thinks of itself."""
    found = stub.ListVariants(pb.ListVariantsRequest(), metadata=METADATA, timeout=60).variants
    assert [variant.name for variant in found] == list(VARIANTS)
    assert [variant.is_default for variant in found] == [True, False]
    assert [variant.traffic_weight for variant in found] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        (request(4, "nobody"), grpc.StatusCode.NOT_FOUND, "variant: is unknown"),
        (
            pb.GenerateRequest(text=PROMPT, sampling=pb.SamplingParameters(temperature=-1)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "sampling.temperature",
        ),
    ],
)
def test_errors_keep_their_status_and_words(
    stub: Any, wrong: pb.GenerateRequest, code: grpc.StatusCode, words: str
) -> None:
    """Of the ingress's own, and of a replica's server; streamed or not."""
    with pytest.raises(grpc.RpcError) as unary:
        stub.Complete(wrong, metadata=METADATA, timeout=60)
    with pytest.raises(grpc.RpcError) as streamed:
        list(stub.Generate(wrong, metadata=METADATA, timeout=60))
    for caught in (unary, streamed):
        assert caught.value.code() is code
        assert words in caught.value.details()


def test_leaving_a_stream_ends_it_on_the_replica(stub: Any, targets: Path) -> None:
    """Nobody computes what nobody reads."""
    stream = stub.Generate(request(1000), metadata=METADATA, timeout=120)
    next(stream)
    wait_for(lambda: running(targets) > 0)
    stream.cancel()
    wait_for(lambda: running(targets) == 0)


def test_every_replica_is_found_by_prometheus(stub: Any, targets: Path) -> None:
    """By a file each, whose address answers with the metrics of its variant."""
    del stub
    wait_for(lambda: len(list(targets.glob("*.json"))) >= 4)
    seen: list[str] = []
    for address, labels in announced(targets):
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
        assert f'variant="{labels["replica_of"]}"' in text
        seen.append(labels["replica_of"])
    assert sorted(set(seen)) == sorted(VARIANTS)


def test_a_killed_replica_loses_nothing_that_had_not_begun(stub: Any, targets: Path) -> None:
    """In mid-load: what streamed ends UNAVAILABLE, all else ends well, and a new one comes."""
    outcomes: list[tuple[bool, grpc.StatusCode]] = []
    lock = threading.Lock()
    stop_s = time.monotonic() + 15

    def keep_asking() -> None:
        while time.monotonic() < stop_s:
            begun, code = False, grpc.StatusCode.OK
            try:
                for _ in stub.Generate(request(60), metadata=METADATA, timeout=120):
                    begun = True
            except grpc.RpcError as error:
                code = error.code()
            with lock:
                outcomes.append((begun, code))

    before = {pid_of(path) for path in targets.glob("*.json")}
    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(keep_asking) for _ in range(6)]
        time.sleep(4)
        victim = psutil.Process(busiest(targets)).parent()
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        for done in asking:
            done.result()
    assert {code for _, code in outcomes} <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert all(begun for begun, code in outcomes if code is grpc.StatusCode.UNAVAILABLE)
    assert sum(code is grpc.StatusCode.OK for _, code in outcomes) > 20
    # Its server went with it, and its file goes when another comes.
    wait_for(lambda: {pid_of(path) for path in targets.glob("*.json")} - before, 120)
    wait_for(lambda: all(psutil.pid_exists(pid_of(path)) for path in targets.glob("*.json")), 60)


def announced(targets: Path) -> list[tuple[str, dict[str, str]]]:
    found = [json.loads(path.read_text())[0] for path in sorted(targets.glob("*.json"))]
    return [(one["targets"][0], one["labels"]) for one in found]


def pid_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def running(targets: Path) -> int:
    """Requests that hold a slot, of all replicas."""
    return sum(requests_of(address) for address, _ in announced(targets))


def requests_of(address: str) -> int:
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
    lines = (line for line in text.splitlines() if line.startswith("inference_running_requests{"))
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


def busiest(targets: Path) -> int:
    """The server, by its process, that runs most requests."""
    paths = sorted(targets.glob("*.json"))
    return pid_of(
        max(paths, key=lambda path: requests_of(json.loads(path.read_text())[0]["targets"][0]))
    )


def wait_for(look: Any, timeout_s: float = 30) -> None:
    end_s = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < end_s
        time.sleep(0.2)
