"""``make bench-ray``: what Ray Serve costs per token, beside the plain server, in turns.

Owns the figures of docs/ray.md. Both serve the demo's baseline from one store, one process each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import yaml

from benchmarks.ray_cluster import METADATA, TARGET, serving, two_nodes
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from server.comparison.machine import this_machine
from server.comparison.server_process import ServerProcess

_TOKENS = 256
_STREAMS = (1, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_cost", description=__doc__)
    parser.add_argument("--store", required=True, help="a store with the demo's baseline")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "config.yaml"
        content = {
            "model": "demo",
            "variants": {"baseline": []},
            "store": options.store,
            "offline": True,
            "engine": {"threads": 1},
        }
        config.write_text(yaml.safe_dump(content), encoding="utf-8")
        with (
            ServerProcess(config, stderr=Path(name) / "server.log") as server,
            two_nodes(),
            serving(config, min_replicas=1, max_replicas=1, cpus=1.0),
            grpc.insecure_channel(server.target) as plain,
            grpc.insecure_channel(TARGET) as ray,
        ):
            server.wait_ready()
            _print(_measure(plain, ray, options.rounds))
    return 0


def _measure(
    plain: grpc.Channel, ray: grpc.Channel, rounds: int
) -> dict[int, list[tuple[float, float]]]:
    """Milliseconds per token of one stream, plain and by Ray, by how many there are."""
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in _STREAMS}
    for round_ in range(rounds + 1):
        for count in _STREAMS:
            pair = (_token_ms(plain, count, ()), _token_ms(ray, count, METADATA))
            if round_:  # the first warms up
                found[count].append(pair)
    return found


def _token_ms(channel: grpc.Channel, streams: int, metadata: Any) -> float:
    """Milliseconds between tokens of each of some streams that run at a time; the median."""
    stub: Any = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
    request = pb.GenerateRequest(
        text="def main():",
        sampling=pb.SamplingParameters(max_tokens=_TOKENS, ignore_eos=True, temperature=0),
    )

    def one(_: int) -> float:
        stream = stub.Generate(request, metadata=metadata, timeout=120)
        next(stream)
        begun_s = time.monotonic()
        for _message in stream:
            pass
        return (time.monotonic() - begun_s) / (_TOKENS - 1) * 1000

    with ThreadPoolExecutor(streams) as pool:
        return statistics.median(pool.map(one, range(streams)))


def _print(found: dict[int, list[tuple[float, float]]]) -> None:
    sys.stdout.write(
        "| streams | plain, ms a token | Ray, ms a token | more, ms (least to most) |\n"
    )
    sys.stdout.write("| ---: | ---: | ---: | ---: |\n")
    for count, pairs in found.items():
        plain, ray = (statistics.median(side) for side in zip(*pairs, strict=True))
        more = [theirs - ours for ours, theirs in pairs]
        sys.stdout.write(
            f"| {count} | {plain:.2f} | {ray:.2f} | {statistics.median(more):.2f} "
            f"({min(more):.2f} to {max(more):.2f}) |\n"
        )
    machine = this_machine()
    sys.stdout.write(
        f"\n{machine.processor} ({machine.isa}), {machine.cores} cores, {machine.system}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
