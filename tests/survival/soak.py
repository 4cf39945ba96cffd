"""Very many short requests of all kinds against one server: the load of the soak test.

Owns what is asked, who leaves early, whose deadline passes, and the count of how all of it ended.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import httpx

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc

CANCELLED = 0.10
LATE = 0.05
_HTTP = 0.2
_TIMEOUT_S = 60.0
_SCHEMA = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
_CHANNELS = 4


@dataclass(slots=True)
class Soak:
    """One load.

    Attributes:
        target: Where gRPC listens.
        http_url: Where the HTTP API begins.
        at_a_time: Requests under way.
        ended: How many requests ended with each final status.
        meant: How many were meant to be answered, to be cancelled and to be late.
    """

    target: str
    http_url: str
    at_a_time: int = 12
    seed: int = 1
    ended: Counter[str] = field(default_factory=Counter)
    meant: Counter[str] = field(default_factory=Counter)

    async def run(self, count: int, sample: Callable[[int], None], every: int) -> None:
        """Make ``count`` requests; ``sample`` is called after each ``every`` of them."""
        draw = random.Random(self.seed)  # noqa: S311 - no secret
        numbers = iter(range(count))
        channels = [grpc.aio.insecure_channel(self.target) for _ in range(_CHANNELS)]
        stubs = [inference_pb2_grpc.InferenceStub(channel) for channel in channels]
        done = 0

        async def work(client: httpx.AsyncClient) -> None:
            nonlocal done
            for number in numbers:
                if draw.random() < _HTTP:
                    await self._over_http(client, number, draw)
                else:
                    await self._over_grpc(stubs[number % _CHANNELS], number, draw)
                done += 1
                if done % every == 0:
                    sample(done)

        async with httpx.AsyncClient(timeout=_TIMEOUT_S) as client:
            await asyncio.gather(*(work(client) for _ in range(self.at_a_time)))
        for channel in channels:
            await channel.close()

    def _fate(self, draw: random.Random) -> str:
        chance = draw.random()
        fate = "answered"
        if chance < CANCELLED:
            fate = "cancelled"
        elif chance < CANCELLED + LATE:
            fate = "late"
        self.meant[fate] += 1
        return fate

    async def _over_grpc(
        self, stub: inference_pb2_grpc.InferenceStub, number: int, draw: random.Random
    ) -> None:
        fate = self._fate(draw)
        timeout = draw.random() * 0.01 if fate == "late" else _TIMEOUT_S
        sampling = pb.SamplingParameters(max_tokens=4, seed=number, temperature=0.8)
        common = {"sampling": sampling, "variant": ("baseline", "int8")[number % 2]}
        text = f"def f{number % 1000}("
        match number % 4:
            case 0:
                call = stub.Generate(pb.GenerateRequest(text=text, **common), timeout=timeout)
            case 1:
                call = stub.Complete(pb.GenerateRequest(text=text, **common), timeout=timeout)
            case 2:
                messages = [pb.ChatMessage(role="user", content=text)]
                call = stub.Chat(pb.ChatRequest(messages=messages, **common), timeout=timeout)
            case _:
                sampling.max_tokens = 24
                wanted = pb.ResponseFormat(json_schema=_SCHEMA)
                request = pb.GenerateRequest(text=text, response_format=wanted, **common)
                call = stub.Complete(request, timeout=timeout)
        if fate == "cancelled":
            await asyncio.sleep(draw.random() * 0.02)
            call.cancel()
        streams = number % 4 in (0, 2)
        try:
            finishes = [r.HasField("finish") async for r in call] if streams else [await call]
            status = "OK" if finishes and finishes[-1] else "no final message"
        except asyncio.CancelledError:
            status = "CANCELLED"
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        self.ended[status] += 1

    async def _over_http(self, client: httpx.AsyncClient, number: int, draw: random.Random) -> None:
        fate = self._fate(draw)
        content: dict[str, object] = {"model": "baseline", "max_tokens": 4, "seed": number}
        path = "chat/completions" if number % 2 else "completions"
        if number % 2:
            content["messages"] = [{"role": "user", "content": f"say {number % 1000}"}]
        else:
            content["prompt"] = f"say {number % 1000}"
        content["stream"] = number % 3 == 0

        async def ask() -> None:
            answer = await client.post(f"{self.http_url}/{path}", json=content)
            whole = not content["stream"] or answer.text.endswith("data: [DONE]\n\n")
            self.ended["OK" if answer.status_code == 200 and whole else answer.text[:80]] += 1

        # HTTP has no deadline: who is late gives up, which is a disconnect.
        limit_s = None if fate == "answered" else draw.random() * 0.02
        await self._limited(ask, limit_s)

    async def _limited(self, ask: Callable[[], Awaitable[None]], limit_s: float | None) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await ask()
        except TimeoutError:
            self.ended["CANCELLED"] += 1
