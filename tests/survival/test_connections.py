"""Peers that open connections and do anything but ask: cut off, half-open, too large, too many."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
import yaml

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from server.comparison.server_process import ServerProcess
from tests.survival.conftest import Survivor, demo_config

STREAMED = pb.GenerateRequest(
    text="def", sampling=pb.SamplingParameters(max_tokens=8, ignore_eos=True)
)
_RESET = struct.pack("ii", 1, 0)


def connect(address: tuple[str, int], *, resets: bool = False) -> socket.socket:
    peer = socket.create_connection(address, timeout=30)
    if resets:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return peer


def grpc_address(survivor: Survivor) -> tuple[str, int]:
    host, port = survivor.server.target.rsplit(":", 1)
    return host, int(port)


def http_address(survivor: Survivor) -> tuple[str, int]:
    url = urlsplit(survivor.server.http_url)
    assert url.hostname is not None
    assert url.port is not None
    return url.hostname, url.port


def answers(survivor: Survivor) -> None:
    """Both faces still do what they are there for."""
    with grpc.insecure_channel(survivor.server.target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        assert stub.Complete(STREAMED, timeout=60).finish.usage.completion_tokens == 8
    body = {"prompt": "def", "max_tokens": 8, "ignore_eos": True}
    answer = httpx.post(f"{survivor.server.http_url}/completions", json=body, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == 8


def back_to(survivor: Survivor, descriptors: int) -> None:
    """Wait until no more is open than there was."""
    survivor.server.wait_for(lambda: survivor.process.num_fds() <= descriptors or None, 60)


# Requests as bytes.


def http_request() -> bytes:
    body = b'{"prompt": "def", "max_tokens": 8, "ignore_eos": true, "stream": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field of HPACK that stands for itself."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def grpc_request() -> bytes:
    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/inference_unlimited.v1.Inference/Generate",
        b":authority": b"x",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }
    message = STREAMED.SerializeToString()
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(4, 0, 0, b"")
        + _frame(1, 4, 1, b"".join(_literal(name, value) for name, value in headers.items()))
        + _frame(0, 1, 1, struct.pack(">BI", 0, len(message)) + message)
    )


FACES = pytest.mark.parametrize(
    ("content", "address", "last"),
    [(http_request(), http_address, b"[DONE]"), (grpc_request(), grpc_address, b"grpc-status")],
    ids=["http", "grpc"],
)
Address = Callable[[Survivor], tuple[str, int]]


@FACES
def test_the_requests_that_are_cut_are_whole_ones(
    survivor: Survivor, content: bytes, address: Address, last: bytes
) -> None:
    """Uncut, they are answered; else cutting them would prove nothing."""
    before = survivor.ended()
    with connect(address(survivor)) as peer:
        peer.sendall(content)
        received = b""
        while last not in received:
            part = peer.recv(1 << 16)
            assert part, received
            received += part
    survivor.settle()
    assert survivor.ended() - before == {"ok": 1}


@FACES
def test_a_client_that_disconnects_at_any_byte_leaves_nothing_behind(
    survivor: Survivor, content: bytes, address: Address, last: bytes
) -> None:
    """Cut after each number of bytes, by closing and by resetting the connection."""
    del last
    descriptors = survivor.process.num_fds()
    for count in range(len(content) + 1):
        with connect(address(survivor), resets=bool(count % 2)) as peer:
            peer.sendall(content[:count])
    survivor.check()
    back_to(survivor, descriptors)
    answers(survivor)


def test_cancels_in_every_state_leave_nothing_behind(survivor: Survivor) -> None:
    """Queued, in their prompts, while they decode and as they end, at moments drawn at random."""
    draw = random.Random(5)  # noqa: S311 - no secret
    before = survivor.ended()
    with grpc.insecure_channel(survivor.server.target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        for _ in range(12):
            calls = [stub.Generate(STREAMED, timeout=60) for _ in range(16)]
            for call in draw.sample(calls, len(calls)):
                time.sleep(draw.random() * 0.004)
                call.cancel()
    survivor.check()
    assert set(survivor.ended() - before) <= {"ok", "cancelled"}
    answers(survivor)


# Too large.


def test_giant_metadata_is_refused(survivor: Survivor) -> None:
    """The connection or the call ends; the server goes on."""
    options = (("grpc.max_metadata_size", 1 << 24), ("grpc.absolute_max_metadata_size", 1 << 24))
    with grpc.insecure_channel(survivor.server.target, options=options) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Complete(STREAMED, timeout=30, metadata=(("x-large", "y" * (1 << 20)),))
    assert refused.value.code() in (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
    )
    answers(survivor)


def test_a_giant_message_is_refused(survivor: Survivor) -> None:
    """Before it is read."""
    with grpc.insecure_channel(survivor.server.target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Complete(pb.GenerateRequest(text="x" * (8 << 20)), timeout=30)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    answer = httpx.post(
        f"{survivor.server.http_url}/completions", content=b"[" * (8 << 20), timeout=30
    )
    assert answer.status_code == 400
    answers(survivor)


def test_giant_headers_are_refused(survivor: Survivor) -> None:
    """One that never ends as well: the connection is closed."""
    with connect(http_address(survivor)) as peer:
        try:
            peer.sendall(b"GET /v1/models HTTP/1.1\r\nX-Large: " + b"y" * (4 << 20))
            received = peer.recv(1 << 16)
        except ConnectionError:  # it was closed while we wrote
            received = b""
    assert received == b"" or received.startswith(b"HTTP/1.1 4")
    answers(survivor)


# Too many, and too slow.


def storm(survivor: Survivor, count: int) -> None:
    """Open connections and drop them, with and without some bytes."""
    descriptors = survivor.process.num_fds()
    addresses = [grpc_address(survivor), http_address(survivor)]
    for number in range(count):
        with connect(addresses[number % 2], resets=number % 3 > 0) as peer:
            if number % 5 == 0:
                peer.sendall(b"\x00\xff" if number % 2 else b"PRI * HTTP/2.0\r\n\r\nSM")
    back_to(survivor, descriptors + 2)
    survivor.check()
    answers(survivor)


def test_connections_that_are_dropped_are_forgotten(survivor: Survivor) -> None:
    """A thousand of them."""
    storm(survivor, 1000)


@pytest.mark.slow
def test_ten_thousand_connections_that_are_dropped_are_forgotten(survivor: Survivor) -> None:
    """Ten thousand."""
    storm(survivor, 10_000)


def test_half_open_requests_are_closed_and_hold_up_nobody(demo_store: Path, tmp_path: Path) -> None:
    """Peers that never finish what they say: the server hangs up on them after a while."""
    config = tmp_path / "config.yaml"
    impatient = {"transport": {"head_seconds": 1, "body_seconds": 1}}
    content = demo_config(demo_store, server=impatient)
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    with ServerProcess(config, stderr=tmp_path / "log") as server:
        server.wait_ready()
        survivor = Survivor(server)
        whole = http_request()
        parts = (b"", b"POST", whole[:40], whole[:-1], whole.split(b"{")[0])
        peers = [connect(http_address(survivor)) for _ in range(100)]
        for number, peer in enumerate(peers):
            peer.sendall(parts[number % len(parts)])
        answers(survivor)
        for peer in peers:
            assert peer.recv(1 << 16) == b""
            peer.close()
        survivor.check()
