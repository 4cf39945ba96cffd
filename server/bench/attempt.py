"""One request of the load generator: sent, read to its end or left on purpose, and timed.

Knows nothing of when requests are sent or of how figures are put together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from protos import inference_pb2 as pb

OK, LEFT = "ok", "left"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one request.

    Attributes:
        variant: Who answered; empty where nobody did.
        status: ``ok``, ``left`` (cancelled on purpose), or gRPC's status in lower case.
        due_s: When it was to be sent (monotonic seconds).
        ended_s: When its last message came, or it was refused or left.
        prompt_tokens: Of its prompt.
        arrivals: When each message with tokens came, and how many it held.
        queue_s: Seconds that the server says it waited.
    """

    variant: str
    status: str
    due_s: float
    ended_s: float
    prompt_tokens: int
    arrivals: tuple[tuple[float, int], ...] = ()
    queue_s: float | None = None

    @property
    def first_token_s(self) -> float | None:
        """Seconds from when it was due to its first token."""
        return self.arrivals[0][0] - self.due_s if self.arrivals else None

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Seconds before each later token; a message's gap is divided over its tokens."""
        gaps: list[float] = []
        for (before, _), (now, count) in zip(self.arrivals, self.arrivals[1:], strict=False):
            gaps += [(now - before) / count] * count
        return tuple(gaps)

    @property
    def tokens(self) -> int:
        """Generated ones that came."""
        return sum(count for _, count in self.arrivals)

    @property
    def duration_s(self) -> float:
        """Seconds from when it was due to its end."""
        return self.ended_s - self.due_s


async def attempt(
    stub: Any,
    request: pb.GenerateRequest,
    prompt: Sequence[int],
    *,
    due_s: float,
    timeout_s: float,
    leaves_after: int | None,
    metadata: Sequence[tuple[str, str]] = (),
) -> Attempt:
    """Send a request and read its answer.

    Args:
        stub: Of the server.
        request: What is asked.
        prompt: Its token ids.
        due_s: When it was to be sent.
        timeout_s: Its deadline.
        leaves_after: After how many tokens it is cancelled; None reads to the end.
        metadata: Sent with it.
    """
    arrivals: list[tuple[float, int]] = []
    variant, status, queue_s = request.variant, OK, None
    call = stub.Generate(request, timeout=timeout_s, metadata=tuple(metadata))
    try:
        async for message in call:
            if message.token_ids:
                arrivals.append((time.monotonic(), len(message.token_ids)))
            if message.HasField("finish"):
                variant = message.finish.variant
                queue_s = message.finish.timings.queue_seconds
            elif leaves_after is not None and sum(n for _, n in arrivals) >= leaves_after:
                call.cancel()
                status = LEFT
                break
        else:
            if queue_s is None:
                status = "no_finish"  # a stream that ends without its last message
    except grpc.aio.AioRpcError as error:
        status = error.code().name.lower()
    return Attempt(variant, status, due_s, time.monotonic(), len(prompt), tuple(arrivals), queue_s)
