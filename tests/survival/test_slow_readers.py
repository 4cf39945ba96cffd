"""Readers that never read: they hold up nobody, and what the server keeps for them is bounded."""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlsplit

import grpc

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from tests.slow_reading import NARROW
from tests.survival.conftest import Survivor

READERS = 12  # of 20 places
LONG = pb.GenerateRequest(
    text="def",
    variant="baseline",
    sampling=pb.SamplingParameters(max_tokens=100, ignore_eos=True, logprobs=20),
)
SHORT = pb.GenerateRequest(
    text="def", variant="baseline", sampling=pb.SamplingParameters(max_tokens=8, ignore_eos=True)
)


def ask(survivor: Survivor, count: int = 10) -> None:
    with grpc.insecure_channel(survivor.server.target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        for _ in range(count):
            assert stub.Complete(SHORT, timeout=60).finish.usage.completion_tokens == 8


def test_grpc_readers_that_never_read(survivor: Survivor) -> None:
    """Their answers are made and kept within their places; the engine serves others meanwhile."""
    ask(survivor)
    before = survivor.process.memory_info().rss
    with grpc.insecure_channel(survivor.server.target, options=NARROW) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        streams = [stub.Generate(LONG, timeout=120) for _ in range(READERS)]
        for stream in streams:
            next(stream)
        ask(survivor)
        survivor.settle()  # the engine is done with all of them
        assert survivor.process.memory_info().rss - before < 64 << 20
        for stream in streams:
            stream.cancel()
    ask(survivor)
    survivor.check()


def test_http_readers_that_never_read(survivor: Survivor) -> None:
    """The same over sockets whose windows are as small as the system makes them."""
    url = urlsplit(survivor.server.http_url)
    body = json.dumps(
        {"prompt": "def", "model": "baseline", "max_tokens": 100, "ignore_eos": True}
        | {"stream": True, "logprobs": 20}
    )
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    before = survivor.process.memory_info().rss
    readers = []
    for _ in range(READERS):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        reader.settimeout(30)
        reader.connect((url.hostname, url.port))
        reader.sendall((head + body).encode())
        readers.append(reader)
    assert readers[0].recv(15) == b"HTTP/1.1 200 OK"
    ask(survivor)
    survivor.settle()
    time.sleep(0.5)
    assert survivor.process.memory_info().rss - before < 64 << 20
    for reader in readers:
        reader.close()
    ask(survivor)
    survivor.check()
