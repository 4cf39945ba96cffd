"""When requests are sent: at random moments whatever the server does, or as soon as others end.

An open loop is what users do: they come whether or not earlier ones are served, and how long each
waited is counted from when it was due, also where the generator itself was late. A closed loop has
a fixed number of users who wait for each answer. Knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

_MOST_AT_A_TIME = 10_000

Send = Callable[[int, float], Awaitable[float]]
"""Sends the request of a number, due at a moment (monotonic seconds); returns how many seconds its
user then stays away."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How requests come.

    Attributes:
        rate: Per second, at moments of a Poisson process; None for a closed loop.
        concurrency: Users of a closed loop.
        seconds: How long new ones are sent; None for as long as ``requests`` says.
        requests: How many are sent at most; None for as many as the time allows.
        seed: Of all draws.
    """

    rate: float | None
    concurrency: int
    seconds: float | None
    requests: int | None
    seed: int = 0


def moments(plan: Plan) -> Iterator[float]:
    """Seconds from the beginning to each request of an open loop.

    A Poisson process: the times between requests are independent and exponential.
    """
    rng = random.Random(plan.seed)  # noqa: S311 - no secret
    due_s = 0.0
    for _ in _numbers(plan.requests):
        due_s += rng.expovariate(plan.rate or 1.0)
        if plan.seconds is not None and due_s > plan.seconds:
            return
        yield due_s


async def send_all(plan: Plan, send: Send) -> None:
    """Send as planned and wait for all."""
    if plan.rate is None:
        await _closed(plan, send)
    else:
        await _open(moments(plan), send)


async def _open(due: Iterable[float], send: Send) -> None:
    begun_s = time.monotonic()
    room = asyncio.Semaphore(_MOST_AT_A_TIME)  # a machine has only so many streams
    async with asyncio.TaskGroup() as group:
        for number, after_s in enumerate(due):
            due_s = begun_s + after_s
            await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
            await room.acquire()
            task = group.create_task(_sent(send, number, due_s))
            task.add_done_callback(lambda _: room.release())


async def _closed(plan: Plan, send: Send) -> None:
    numbers = iter(_numbers(plan.requests))
    end_s = float("inf") if plan.seconds is None else time.monotonic() + plan.seconds

    async def user() -> None:
        while (now_s := time.monotonic()) < end_s:
            number = next(numbers, None)
            if number is None:
                return
            pause_s = await send(number, now_s)
            await asyncio.sleep(min(pause_s, max(end_s - time.monotonic(), 0.0)))

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.concurrency):
            group.create_task(user())


def _numbers(count: int | None) -> Iterable[int]:
    return itertools.count() if count is None else range(count)


async def _sent(send: Send, number: int, due_s: float) -> None:
    await send(number, due_s)
