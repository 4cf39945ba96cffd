"""One request of the load generator: sent, read to its end or left on purpose, and timed.

Owns what became of it: every request that is sent ends with exactly one status, also when the run
is interrupted. Knows nothing of when requests are sent or of how figures are put together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from protos import inference_pb2 as pb
from server.token_gaps import token_gaps_s

OK, LEFT, INTERRUPTED, NO_FINISH = "ok", "left", "interrupted", "no_finish"
OVERLOADED = "resource_exhausted"

_PUSHBACK = "grpc-retry-pushback-ms"  # of gRPC's retry design (A6)
_PAUSE_S = 0.1  # of a user who got an error that does not say when to come back
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one request.

    Attributes:
        variant: Who answered; who was asked where nobody did, empty for routed traffic.
        status: ``ok``, ``left`` (cancelled on purpose), ``interrupted`` (the run was),
            ``no_finish`` (a stream that ended without its last message), or gRPC's status in lower
            case.
        due_s: When it was to be sent (monotonic seconds).
        sent_s: When it was.
        ended_s: When its last message came, or it was refused or left.
        arrivals: When each message with tokens came, and how many it held.
        queue_s: Seconds that the server says it waited.
        cached_tokens: Of its prompt that the server had computed for another one.
        message: The server's sentence where it refused.
        pause_s: Seconds after which its user asks again.
    """

    variant: str
    status: str
    due_s: float
    sent_s: float
    ended_s: float
    arrivals: tuple[tuple[float, int], ...] = ()
    queue_s: float | None = None
    cached_tokens: int = 0
    message: str = ""
    pause_s: float = 0.0

    @property
    def lateness_s(self) -> float:
        """Seconds from when it was due to when the generator sent it."""
        return self.sent_s - self.due_s

    @property
    def first_token_s(self) -> float | None:
        """Seconds from when it was due to its first token."""
        return self.arrivals[0][0] - self.due_s if self.arrivals else None

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Seconds before each token after the first message's."""
        return token_gaps_s(self.arrivals)

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
    ended: Callable[[Attempt], None],
    *,
    due_s: float,
    timeout_s: float,
    leaves_after: int | None = None,
    metadata: Sequence[tuple[str, str]] = (),
) -> Attempt:
    """Send a request and read its answer.

    Args:
        stub: Of the server.
        request: What is asked.
        ended: Told exactly once what became of it, also where this is cancelled.
        due_s: When it was to be sent.
        timeout_s: Its deadline, from when it was due.
        leaves_after: After how many tokens it is cancelled; None reads to the end.
        metadata: Sent with it.
    """
    sent_s = time.monotonic()
    arrivals: list[tuple[float, int]] = []
    finish: pb.Finish | None = None
    status, message, pause_s = NO_FINISH, "", 0.0
    call = stub.Generate(
        request, timeout=max(due_s + timeout_s - sent_s, 0.0), metadata=tuple(metadata)
    )
    try:
        async for answer in call:
            if answer.token_ids:
                arrivals.append((time.monotonic(), len(answer.token_ids)))
            if answer.HasField("finish"):
                finish, status = answer.finish, OK
            elif leaves_after is not None and sum(n for _, n in arrivals) >= leaves_after:
                call.cancel()
                status = LEFT
                break
    except grpc.aio.AioRpcError as error:
        status, message = error.code().name.lower(), error.details() or ""
        pause_s = _pause_s(error)
    except asyncio.CancelledError:
        status = INTERRUPTED
        raise
    finally:
        one = Attempt(
            variant=request.variant if finish is None else finish.variant,
            status=status,
            due_s=due_s,
            sent_s=sent_s,
            ended_s=time.monotonic(),
            arrivals=tuple(arrivals),
            queue_s=None if finish is None else finish.timings.queue_seconds,
            cached_tokens=0 if finish is None else finish.usage.cached_tokens,
            message=message,
            pause_s=pause_s,
        )
        ended(one)
    return one


def _pause_s(error: grpc.aio.AioRpcError) -> float:
    """As long as the server asks for, else a little, so that a closed loop does not spin."""
    for name, value in error.trailing_metadata() or ():
        if name == _PUSHBACK and str(value).isdecimal():
            return min(int(value) / 1000, _LONGEST_PAUSE_S)
    return _PAUSE_S
