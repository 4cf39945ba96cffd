"""What the listeners bound, over real ports: overload, sizes, and peers that take their time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from server.calls import GenerateCall
from server.rpc.status import PUSHBACK

if TYPE_CHECKING:
    from server.listeners import Listeners
    from tests.server.conftest import Bench
    from tests.server.security.conftest import Listen

Code = grpc.StatusCode
PROMPT = {"prompt": "def f", "max_tokens": 3}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"


def http(listeners: Listeners, **options: Any) -> httpx.AsyncClient:
    url = f"http://127.0.0.1:{listeners.addresses.http_port}"
    return httpx.AsyncClient(base_url=url, trust_env=False, **options)


def rpc(listeners: Listeners) -> grpc.aio.Channel:
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    target = f"127.0.0.1:{listeners.addresses.grpc_port}"
    return grpc.aio.insecure_channel(target, options=options)


async def refusal(channel: grpc.aio.Channel, **options: Any) -> grpc.aio.AioRpcError:
    stub = pb_grpc.InferenceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Complete(pb.GenerateRequest(text="def f"), timeout=10, **options)
    return caught.value


def pushback(error: grpc.aio.AioRpcError) -> int:
    found = dict(error.trailing_metadata() or ())[PUSHBACK]
    return int(found)


@asynccontextmanager
async def filled(bench: Bench, requests: int) -> AsyncIterator[None]:
    """So many requests are unfinished, and none of them gets on."""
    gate = bench.engine.gate = threading.Semaphore(0)
    before = len(bench.engine.submits)
    answers = [asyncio.create_task(_answer(bench)) for _ in range(requests)]
    await bench.until(lambda: len(bench.engine.submits) == before + requests)
    await bench.until(lambda: len(bench.engine.running) == min(requests, 4))
    try:
        yield
    finally:
        gate.release(1000)
        await asyncio.gather(*answers)


async def _answer(bench: Bench) -> None:
    call = GenerateCall(prompt="def f", received_s=bench.core.clock(), client="other")
    async for _ in bench.core.generate(call):
        pass


async def test_a_full_queue_is_told_over_both(bench: Bench, listen: Listen) -> None:
    """RESOURCE_EXHAUSTED with push-back; 429 with Retry-After, in whole seconds at least 1."""
    listeners = await listen()
    async with filled(bench, 6), rpc(listeners) as channel, http(listeners) as client:
        error = await refusal(channel)
        answer = await client.post("/v1/completions", json=PROMPT)
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert pushback(error) == 250  # a second over four slots
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["retry-after-ms"] == "250"
    assert answer.json()["error"]["type"] == "rate_limit_error"


async def test_who_waited_too_long_is_told_over_both(bench: Bench, listen: Listen) -> None:
    """One that was accepted and got no slot in time ends the same way, once."""
    listeners = await listen()
    async with filled(bench, 4), rpc(listeners) as channel, http(listeners) as client:
        bench.core._intake._max_queue_s = 0.2
        error, answer = await asyncio.gather(
            refusal(channel), client.post("/v1/completions", json=PROMPT)
        )
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "had no slot for this in time" in str(error.details())
        assert pushback(error) > 0
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert bench.core._intake._admission.unfinished("baseline") == 4


async def test_who_would_wait_too_long_is_refused_at_once(bench: Bench, listen: Listen) -> None:
    """By the pace of ends; the engine is not even asked."""
    listeners = await listen()
    admission = bench.core._intake._admission
    admission._max_queue_s = 1e-9
    async with rpc(listeners) as channel, http(listeners) as client:
        async with filled(bench, 4):  # all slots at a time, so that there is a pace
            pass
        await bench.until(lambda: not admission.unfinished("baseline"))
        async with filled(bench, 4):
            asked = len(bench.engine.submits)
            error = await refusal(channel)
            answer = await client.post("/v1/completions", json=PROMPT)
            assert len(bench.engine.submits) == asked
    assert "to begin with this" in str(error.details())
    assert pushback(error) >= 50
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


async def test_calls_are_bounded_in_all(bench: Bench, listen: Listen) -> None:
    """However many connections they come over; what ends makes room."""
    listeners = await listen(transport={"max_calls": 2})
    bench.engine.gate = threading.Semaphore(0)
    async with http(listeners) as client, rpc(listeners) as channel, rpc(listeners) as other:
        posts = [asyncio.create_task(client.post("/v1/completions", json=PROMPT)) for _ in range(2)]
        stub = pb_grpc.InferenceStub(channel)
        calls = [stub.Complete(pb.GenerateRequest(text="def f")) for _ in range(2)]
        await bench.until(lambda: len(bench.engine.submits) == 4)
        answer = await client.get("/v1/models")
        error = await refusal(other)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert pushback(error) == 1000
        health = health_pb2_grpc.HealthStub(other)
        await health.Check(health_pb2.HealthCheckRequest())
        bench.engine.gate.release(100)
        assert [(await post).status_code for post in posts] == [200, 200]
        assert all([(await call).text for call in calls])
        assert (await client.get("/v1/models")).status_code == 200
        assert (await pb_grpc.InferenceStub(other).Complete(pb.GenerateRequest(text="d"))).text


async def test_streams_of_a_connection_are_bounded(bench: Bench, listen: Listen) -> None:
    """Further ones wait in the client until one ends; another connection has its own."""
    listeners = await listen(transport={"max_streams": 2})
    bench.engine.gate = threading.Semaphore(0)
    async with rpc(listeners) as channel, rpc(listeners) as other:
        stub = pb_grpc.InferenceStub(channel)
        calls = [stub.Complete(pb.GenerateRequest(text="def f")) for _ in range(3)]
        await bench.until(lambda: len(bench.engine.submits) == 2)
        more = pb_grpc.InferenceStub(other).Complete(pb.GenerateRequest(text="def f"))
        await bench.until(lambda: len(bench.engine.submits) == 3)
        assert len(bench.engine.submits) == 3
        bench.engine.gate.release(100)
        assert all([(await call).text for call in [*calls, more]])


@pytest.mark.parametrize("listener", ["http", "ops", "grpc"])
async def test_connections_are_bounded(listen: Listen, listener: str) -> None:
    """One too many is closed at once, whatever it sends; one that leaves makes room."""
    listeners = await listen(transport={"max_connections": 3})
    addresses = listeners.addresses
    port = {"http": addresses.http_port, "ops": addresses.ops_port, "grpc": addresses.grpc_port}
    held = [await asyncio.open_connection("127.0.0.1", port[listener]) for _ in range(3)]
    await asyncio.sleep(0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port[listener])
    async with asyncio.timeout(5):
        assert await _rest(reader) == b""
    writer.close()
    held.pop()[1].close()

    async def gets_in() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port[listener])
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if listener == "grpc" else MODELS)
        try:
            return bool(await reader.read(1))
        except ConnectionError:
            return False
        finally:
            writer.close()

    async with asyncio.timeout(10):
        while not await gets_in():  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.05)
    for _, writer in held:
        writer.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side closes; a reset is an end too."""
    found = b""
    try:
        while part := await reader.read(65536):
            found += part
    except ConnectionError:
        pass
    return found


_SLOW: dict[str, list[bytes]] = {
    "says nothing": [],
    "begins a head": [HEAD],
    "drips a head": [HEAD, *[b"X-Header: 1\r\n"] * 1000],
    "promises a body": [HEAD + b"Content-Length: 100\r\n\r\n{"],
    "drips a body": [HEAD + b"Content-Length: 10000\r\n\r\n", *[b" "] * 1000],
    "begins a second head": [MODELS, HEAD],
    "drips after a refusal": [b"POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n"],
}


@pytest.mark.parametrize("peer", _SLOW)
async def test_slow_peers_are_cut_off(bench: Bench, listen: Listen, peer: str) -> None:
    """Whoever does not finish a head or body in time loses its connection, and no other does."""
    listeners = await listen(
        transport={"head_seconds": 0.4, "body_seconds": 0.4, "idle_seconds": 60}
    )
    assert listeners._http is not None
    connections = listeners._http._server.server_state.connections
    reader, writer = await asyncio.open_connection("127.0.0.1", listeners.addresses.http_port)

    async def drip() -> None:
        for part in _SLOW[peer]:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)

    async with http(listeners) as client:
        bench.engine.gate = threading.Semaphore(0)
        patient = asyncio.create_task(client.post("/v1/completions", json=PROMPT))
        await bench.until(lambda: len(bench.engine.submits) == 1)
        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(10):
            await _rest(reader)
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        writer.close()
        await bench.until(lambda: len(connections) == 1)
        await asyncio.sleep(0.5)  # whoever waits for its answer is not slow
        bench.engine.gate.release(100)
        assert (await patient).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200


async def test_idle_connections_are_closed(listen: Listen) -> None:
    """Between requests a connection may rest for a while, and no longer."""
    listeners = await listen(transport={"idle_seconds": 1})
    reader, writer = await asyncio.open_connection("127.0.0.1", listeners.addresses.http_port)
    for _ in range(2):
        writer.write(MODELS)
        assert b"HTTP/1.1 200" in await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.5)
    async with asyncio.timeout(10):
        await _rest(reader)
    writer.close()


async def test_who_does_not_read_is_cut_off(bench: Bench, listen: Listen) -> None:
    """An answer that is not taken holds a connection and a place for a bounded time."""
    listeners = await listen(
        transport={"unread_seconds": 0.5},
        limits={"max_prompt_bytes": "64MiB", "max_prompt_tokens": 1 << 24},
    )
    assert listeners._http is not None
    connections = listeners._http._server.server_state.connections
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", listeners.addresses.http_port, limit=1024
    )
    writer.write(MODELS * 200)  # pipelined, and nothing of the answers is read
    sending = asyncio.create_task(_pour(writer))
    await bench.until(lambda: not connections, 20)
    await asyncio.gather(sending, return_exceptions=True)
    writer.close()
    del reader


async def _pour(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(MODELS * 200)
        await writer.drain()


async def test_heads_are_bounded(listen: Listen) -> None:
    """Also those that come whole; over gRPC it is metadata."""
    listeners = await listen(transport={"max_metadata_bytes": 2048})
    async with http(listeners) as client, rpc(listeners) as channel:
        fits = {"X-Large": "x" * 1000}
        large = {"X-Large": "x" * 3000}
        assert (await client.get("/v1/models", headers=fits)).status_code == 200
        for answer in (
            await client.get("/v1/models", headers=large),
            await client.get("/v1/models?" + "x" * 3000),
        ):
            assert answer.status_code == 431
            assert "more than 2048 bytes" in answer.json()["error"]["message"]
        stub = pb_grpc.InferenceStub(channel)
        request = pb.GenerateRequest(text="def f")
        assert (await stub.Complete(request, metadata=(("x-large", "x" * 1000),))).text
        error = await refusal(channel, metadata=(("x-large", "x" * 3000),))
        assert error.code() is Code.RESOURCE_EXHAUSTED


async def test_an_endless_head_is_no_memory(listen: Listen) -> None:
    """A head that never ends is refused once it is larger than one may be."""
    listeners = await listen()
    reader, writer = await asyncio.open_connection("127.0.0.1", listeners.addresses.http_port)
    writer.write(HEAD)
    for _ in range(64):
        writer.write(b"X-Header: " + b"x" * 1000 + b"\r\n")
    async with asyncio.timeout(5):
        answer = await _rest(reader)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    writer.close()


async def test_bodies_are_bounded(bench: Bench, listen: Listen) -> None:
    """A body, and a gRPC message, is at most what the largest request takes."""
    listeners = await listen()
    most = bench.core.limits.largest_message_bytes
    async with http(listeners) as client, rpc(listeners) as channel:
        answer = await client.post("/v1/completions", content=b" " * (most + 1))
        assert answer.status_code == 400
        assert f"more than {most} bytes" in answer.json()["error"]["message"]
        stub = pb_grpc.InferenceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Complete(pb.GenerateRequest(text=" " * (most + 1)))
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert not bench.engine.submits


async def test_one_token_leaves_places_to_another(
    bench: Bench, listen: Listen, tmp_path: Path
) -> None:
    """Whoever floods is refused while there are places, and the other one gets them."""
    secrets = {"flood": "f" * 16, "modest": "m" * 16}
    for client, secret in secrets.items():
        (tmp_path / client).write_text(secret)
    tokens = [{"client": client, "file": str(tmp_path / client)} for client in secrets]
    listeners = await listen(tokens=tokens)
    bench.core._intake._admission._clients = len(tokens)
    gate = bench.engine.gate = threading.Semaphore(0)

    def ask(client: httpx.AsyncClient, name: str) -> asyncio.Task[httpx.Response]:
        headers = {"Authorization": f"Bearer {secrets[name]}"}
        return asyncio.create_task(client.post("/v1/completions", json=PROMPT, headers=headers))

    async with http(listeners) as client:
        flood = [ask(client, "flood") for _ in range(8)]
        await bench.until(lambda: sum(task.done() for task in flood) == 3)
        refused = [task.result() for task in flood if task.done()]
        modest = ask(client, "modest")
        await bench.until(lambda: len(bench.engine.submits) == 6)  # of six places
        gate.release(1000)
        assert (await modest).status_code == 200
        assert [answer.status_code for answer in refused] == [429] * 3
        assert "are kept for others" in refused[0].json()["error"]["message"]
        assert [(await task).status_code for task in flood].count(200) == 5
