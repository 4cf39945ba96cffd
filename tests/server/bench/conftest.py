"""A gRPC server on a loopback port whose answers a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc

Behave = Callable[[Any, Any], Awaitable[None]]
TEXT = list(range(100, 150))


class ScriptedService(pb_grpc.InferenceServicer):
    """Answers with as many tokens as asked for, one per message, after ``behave``."""

    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self.peers: set[str] = set()
        self.remaining_s: list[float] = []
        self.metadata: list[dict[str, str]] = []
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.behave: Behave = _at_once
        self.behave_tokenize: Behave = _at_once
        self.says_finish = True

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:  # noqa: N802 - as the stubs name it
        await self.behave_tokenize(request, context)
        return pb.TokenizeResponse(token_ids=TEXT)

    async def Generate(  # noqa: N802 - as the stubs name it
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.peers.add(context.peer())
        self.remaining_s.append(context.time_remaining())
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        self.begun.set()
        try:
            await self.behave(request, context)
            for token in range(request.sampling.max_tokens):
                yield pb.GenerateResponse(token_ids=[token])
            if self.says_finish:
                yield _finish(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def _at_once(_: Any, __: Any) -> None:
    """No delay."""


def _finish(request: pb.GenerateRequest) -> pb.GenerateResponse:
    usage = pb.Usage(prompt_tokens=len(request.token_ids.ids), cached_tokens=2)
    timings = pb.Timings(queue_seconds=0.25)
    variant = request.variant or "routed"
    return pb.GenerateResponse(finish=pb.Finish(variant=variant, usage=usage, timings=timings))


@dataclass
class Place:
    """A running scripted server."""

    service: ScriptedService
    target: str
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def stubs(self) -> Sequence[Any]:
        return [pb_grpc.InferenceStub(channel) for channel in self.channels]  # type: ignore[no-untyped-call]

    @property
    def stub(self) -> Any:
        return self.stubs[0]


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    """A scripted server, and a channel to it."""
    service = ScriptedService()
    server = grpc.aio.server()
    pb_grpc.add_InferenceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(target) as channel:
        yield Place(service, target, [channel])
    await server.stop(0)
