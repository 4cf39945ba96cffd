"""A client of the server under test, in a process of its own so that its cost can be told apart.

Owns the channel. Waits for health by watching it. Knows nothing of processes.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.experimental
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.workers.protocol import answer_requests
from benchmarks.workers.schedule import Stream, answer_of, wait_until
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc

_CONNECT_S = 30.0
_STREAMS = 256


class GrpcClient:
    """Speaks to one server at a time."""

    def __init__(self) -> None:
        self._channel: grpc.Channel | None = None
        self._stub: Any = None
        self._threads = ThreadPoolExecutor(_STREAMS)

    def connect(self, target: str) -> dict[str, Any]:
        """Leave the server before and connect to ``target``."""
        if self._channel is not None:
            self._channel.close()
        # One thread per stream that also moves the bytes: less work than gRPC's shared thread.
        options = [(grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1)]
        self._channel = grpc.insecure_channel(target, options=options)
        grpc.channel_ready_future(self._channel).result(timeout=_CONNECT_S)
        self._stub = pb_grpc.InferenceStub(self._channel)  # type: ignore[no-untyped-call]
        return {}

    def wait_serving(self, limit_s: float) -> dict[str, Any]:
        """Return when the server says that it serves."""
        health = health_pb2_grpc.HealthStub(self._channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=limit_s)
        for response in watch:
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                watch.cancel()
                return {}
        raise RuntimeError("The server ended its health stream without serving.")

    def variants(self) -> dict[str, Any]:
        """What the server says of its variants."""
        listed = self._stub.ListVariants(pb.ListVariantsRequest(), timeout=_CONNECT_S)
        return {"variants": [_described(variant) for variant in listed.variants]}

    def generate(
        self,
        prompts: list[list[int]],
        new_tokens: int,
        *,
        limit_s: float,
        temperature: float = 0.0,
        top_p: float = 1.0,
        at_s: list[float] | None = None,
    ) -> dict[str, Any]:
        """Continue prompts at the same time, or each from its moment on, one stream each."""
        sampling = pb.SamplingParameters(
            temperature=temperature, top_p=top_p, max_tokens=new_tokens, ignore_eos=True, seed=0
        )
        requests = [
            pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=sampling) for ids in prompts
        ]
        begun_s = time.monotonic()

        def stream(request: pb.GenerateRequest, wanted_s: float) -> Stream:
            wait_until(begun_s + wanted_s)
            return self._stream(request, begun_s, limit_s)

        moments = at_s or [0.0] * len(requests)
        return answer_of([*self._threads.map(stream, requests, moments)], begun_s, new_tokens)

    def _stream(self, request: pb.GenerateRequest, begun_s: float, limit_s: float) -> Stream:
        stream = Stream()
        finish = None
        for response in self._stub.Generate(request, timeout=limit_s):
            stream.add(response.token_ids, time.monotonic() - begun_s)
            if response.HasField("finish"):
                finish = response.finish
        if finish is None:
            raise RuntimeError(f"A stream ended after {len(stream.tokens)} tokens.")
        if finish.usage.cached_tokens:
            raise RuntimeError("A prompt was answered from the cache of an earlier one.")
        return stream


def _described(variant: pb.Variant) -> dict[str, Any]:
    measured = [stage.quality for stage in variant.lineage if stage.HasField("quality")]
    quality = measured[-1] if measured else None
    return {
        "name": variant.name,
        "artifact": variant.artifact,
        "chain": variant.chain_json,
        "size_bytes": variant.size_bytes,
        "error": variant.error,
        "kl_mean": quality and quality.kl_mean,
        "top1_agreement": quality and quality.top1_agreement,
        "lineage": [
            {"stage": stage.stage, "method": stage.method, "seconds": stage.seconds}
            for stage in variant.lineage
        ],
        "libraries": dict(variant.libraries),
    }


if __name__ == "__main__":
    client = GrpcClient()
    answer_requests(
        {
            "connect": client.connect,
            "wait_serving": client.wait_serving,
            "variants": client.variants,
            "generate": client.generate,
        }
    )
