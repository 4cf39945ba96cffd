"""``python -m benchmarks.image``: build both images, and tell what they weigh and how they start.

Owns the figures of README's section on the container. ``benchmarks.buildah`` says what kind of
container it is; needs root, buildah and debootstrap (``make image-test`` installs them).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
from rich.console import Console

from benchmarks.buildah import Buildah, Image
from benchmarks.contenders import ROOT
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from server.comparison.machine import this_machine

FOLDER = ROOT / "build" / "image"
TARGETS = ("serve", "full")
VOLUME_OWNER = 10001
# Not the image's own 0.0.0.0: without an engine a container has this machine's network.
LOOPBACK = {"INFERENCE_UNLIMITED_SERVER__HOST": "127.0.0.1"}
PORT = 50051
_START_S = 600.0  # an empty store is filled first


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, measure and print; the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.image", description=__doc__)
    parser.add_argument("--base", help="base image; default: a Debian made by debootstrap")
    parser.add_argument("--build-only", action="store_true", help="measure nothing")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    progress = Console(stderr=True)
    buildah = Buildah(FOLDER)
    base = options.base or buildah.base()
    values = {"BASE": base, "TORCH_INDEX_URL": os.environ.get("TORCH_INDEX_URL", "")}
    for target in TARGETS:
        progress.log(f"building {target}")
        buildah.build(ROOT, target, values)
    if options.build_only:
        return 0
    volume = FOLDER / "volume"
    volume.mkdir(exist_ok=True)
    os.chown(volume, VOLUME_OWNER, VOLUME_OWNER)
    sizes: dict[str, int] = {}
    starts: dict[str, list[float]] = {}
    for target in reversed(TARGETS):  # full first: it fills the store
        with buildah.mounted(target) as image:
            sizes[target] = image.size_bytes
            seconds = [first_token_s(image, volume) for _ in range(1 + options.rounds)]
            progress.log(f"{target}, first start: {seconds[0]:.1f} s")
            starts[target] = seconds[1:]
    sys.stdout.write("| image | MiB, base included | start to first token, s (least to most) |\n")
    sys.stdout.write("| --- | ---: | ---: |\n")
    for target in TARGETS:
        found = starts[target]
        sys.stdout.write(
            f"| {target} | {sizes[target] / 2**20:.0f} | {statistics.median(found):.2f} "
            f"({min(found):.2f} to {max(found):.2f}) |\n"
        )
    machine = this_machine()
    sys.stdout.write(
        f"\n{machine.processor} ({machine.isa}), {machine.cores} cores, {machine.system}\n"
    )
    return 0


def first_token_s(image: Image, volume: Path) -> float:
    """Seconds from starting the image's own command to the first token of its demo.

    Raises:
        TimeoutError: None came.
    """
    begun_s = time.monotonic()
    log = volume.parent / "server.log"
    given = {**LOOPBACK, "INFERENCE_UNLIMITED_SERVER__ALLOW_ANONYMOUS": "true"}
    with image.run(image.command, volume, given, output=log) as process:
        stub = inference_pb2_grpc.InferenceStub(grpc.insecure_channel(f"127.0.0.1:{PORT}"))  # type: ignore[no-untyped-call]
        request = pb.GenerateRequest(text="def", sampling=pb.SamplingParameters(max_tokens=1))
        while time.monotonic() - begun_s < _START_S:
            try:
                stub.Complete(request, timeout=10)
            except grpc.RpcError:
                if process.poll() is not None:
                    break
                time.sleep(0.02)  # nothing else tells that a port is open
            else:
                return time.monotonic() - begun_s
    raise TimeoutError(f"no first token: {log.read_text()[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
