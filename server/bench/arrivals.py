"""When requests are sent: at random moments whatever the server does, or as soon as others end.

An open loop is what users do: they come whether or not earlier ones are served, and how long each
waited is counted from when it was due, also where the generator itself was late. A closed loop has
a fixed number of users who wait for each answer. Knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

_MOST_AT_A_TIME = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """How requests come.

    Attributes:
        rate: Per second, at moments of a Poisson process; None for a closed loop.
        concurrency: Users of a closed loop.
        seconds: How long new ones are sent; None for as long as ``requests`` says.
        requests: How many are sent at most; None for as many as the time allows.
        seed: Of the moments.
    """

    rate: float | None
    concurrency: int
    seconds: float | None
    requests: int | None
    seed: int = 0


async def send_all(plan: Plan, send: Callable[[int, float], Awaitable[None]]) -> float:
    """Send as planned and wait for all; returns the seconds from the first to the last answer.

    Args:
        plan: When.
        send: Sends the request of this number, which was due at this moment (monotonic seconds).
    """
    begun_s = time.monotonic()
    if plan.rate is None:
        await _closed(plan, send, begun_s)
    else:
        await _open(plan, send, begun_s)
    return time.monotonic() - begun_s


async def _open(plan: Plan, send: Callable[[int, float], Awaitable[None]], begun_s: float) -> None:
    async with asyncio.TaskGroup() as group:
        running: set[asyncio.Task[None]] = set()
        async for number, due_s in _moments(plan, begun_s):
            while len(running) >= _MOST_AT_A_TIME:  # a machine has only so many streams
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            task = group.create_task(_sent(send, number, due_s))
            running.add(task)
            task.add_done_callback(running.discard)


async def _closed(
    plan: Plan, send: Callable[[int, float], Awaitable[None]], begun_s: float
) -> None:
    numbers = iter(range(plan.requests if plan.requests is not None else 1 << 62))
    end_s = None if plan.seconds is None else begun_s + plan.seconds

    async def user() -> None:
        while end_s is None or time.monotonic() < end_s:
            number = next(numbers, None)
            if number is None:
                return
            await send(number, time.monotonic())

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.concurrency):
            group.create_task(user())


async def _moments(plan: Plan, begun_s: float) -> AsyncIterator[tuple[int, float]]:
    assert plan.rate is not None  # noqa: S101 - of open loops only
    rng = random.Random(plan.seed)  # noqa: S311 - no secret
    due_s = begun_s
    number = 0
    while plan.requests is None or number < plan.requests:
        due_s += rng.expovariate(plan.rate)
        if plan.seconds is not None and due_s > begun_s + plan.seconds:
            return
        await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
        yield number, due_s
        number += 1


async def _sent(send: Callable[[int, float], Awaitable[None]], number: int, due_s: float) -> None:
    await send(number, due_s)
