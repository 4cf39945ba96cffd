"""Streams of one server over real gRPC, with the moment at which each message came.

Owns the requests and what is derived from arrivals: the rate while all streams run, gaps, waits.
Knows nothing of processes or of variants.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from server.errors import ServerError
from server.token_gaps import token_gaps_s

_REQUEST_S = 1800.0
_CONNECT_S = 30.0


class StreamError(ServerError):
    """A stream of a measurement did not give what it was asked for."""

    code = "stream"


@dataclass(frozen=True, slots=True)
class Stream:
    """One completion.

    Attributes:
        begun_s: When it was asked for (monotonic seconds).
        arrivals: When each message with tokens came, and how many it held.
        tokens: All of them.
        cached_tokens: Of the prompt, answered from an earlier one's cache.
        draft_tokens: Guessed ahead and checked.
        accepted_tokens: Guesses that were right.
    """

    begun_s: float
    arrivals: tuple[tuple[float, int], ...]
    tokens: tuple[int, ...]
    cached_tokens: int
    draft_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def first_token_s(self) -> float:
        """Seconds from the request to its first token."""
        return self.arrivals[0][0] - self.begun_s

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Seconds before each token after the first message's."""
        return token_gaps_s(self.arrivals)


def decode_rate(streams: Sequence[Stream]) -> float:
    """Tokens per second of all streams together, while every one of them has begun and none ended.

    Prompts are no part of it: what came with or before the last stream's first token is not
    counted. A model so small that its streams end before all have begun gets the rate over the
    whole time instead.
    """
    begin_s = max(stream.arrivals[0][0] for stream in streams)
    end_s = min(stream.arrivals[-1][0] for stream in streams)
    if end_s <= begin_s:
        begin_s = min(stream.begun_s for stream in streams)
        end_s = max(stream.arrivals[-1][0] for stream in streams)
    tokens = sum(
        count for stream in streams for at_s, count in stream.arrivals if begin_s < at_s <= end_s
    )
    return tokens / (end_s - begin_s)


class Client:
    """Asks one server that serves one variant. Make one with ``connected``."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]

    async def describe(self) -> pb.Variant:
        """All that the server says of its variant.

        Raises:
            StreamError: The server does not answer.
        """
        with _refusals():
            variant: pb.Variant = await self._stub.GetVariant(
                pb.GetVariantRequest(), timeout=_CONNECT_S
            )
        return variant

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, without special ones.

        Raises:
            StreamError: The server refuses.
        """
        request = pb.TokenizeRequest(text=text, add_special_tokens=False)
        with _refusals():
            response = await self._stub.Tokenize(request, timeout=_REQUEST_S)
        return tuple(response.token_ids)

    async def generate(self, prompt: Sequence[int], sampling: pb.SamplingParameters) -> Stream:
        """Stream one completion.

        Raises:
            StreamError: The server refuses or the stream ends without its last message.
        """
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling)
        begun_s = time.monotonic()
        arrivals: list[tuple[float, int]] = []
        tokens: list[int] = []
        finish: pb.Finish | None = None
        with _refusals():
            async for response in self._stub.Generate(request, timeout=_REQUEST_S):
                if response.token_ids:
                    arrivals.append((time.monotonic(), len(response.token_ids)))
                    tokens.extend(response.token_ids)
                if response.HasField("finish"):
                    finish = response.finish
        if finish is None or not arrivals:
            raise StreamError("The server ended a stream without a token.")
        usage = finish.usage
        return Stream(
            begun_s,
            tuple(arrivals),
            tuple(tokens),
            usage.cached_tokens,
            usage.draft_tokens,
            usage.accepted_tokens,
        )

    async def margin(self, prompt: Sequence[int]) -> float:
        """By how many nats the likeliest next token is ahead of the second.

        Raises:
            StreamError: The server refuses or tells no probabilities.
        """
        sampling = exactly(1)
        sampling.logprobs = 2
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling)
        told: list[float] = []
        with _refusals():
            async for response in self._stub.Generate(request, timeout=_REQUEST_S):
                told += [one.logprob for token in response.logprobs for one in token.top]
        if len(told) < 2:
            raise StreamError("The server told no probabilities.")
        return abs(told[0] - told[1])

    async def generate_all(
        self, prompts: Sequence[Sequence[int]], sampling: pb.SamplingParameters
    ) -> tuple[Stream, ...]:
        """Stream several completions at the same time."""
        return tuple(await asyncio.gather(*(self.generate(one, sampling) for one in prompts)))


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise StreamError(
            f"The server refused a request: {error.code().name.lower()}: {error.details()}"
        ) from None


def exactly(tokens: int) -> pb.SamplingParameters:
    """Greedy, and of just this length."""
    return pb.SamplingParameters(temperature=0.0, max_tokens=tokens, ignore_eos=True, seed=0)


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[Client]:
    """A client of the server at ``host:port``."""
    async with grpc.aio.insecure_channel(target) as channel:
        yield Client(channel)
