"""Work that gives way: its niceness is its own, and giving up on it does no harm."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from server.quiet_thread import any_quiet_thread, in_quiet_thread


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def test_only_the_work_is_slow() -> None:
    """The thread that waits keeps its priority."""
    before = niceness()
    assert await in_quiet_thread(niceness) == 19
    assert niceness() == before


async def test_errors_come_back() -> None:
    """As if it had been called here."""
    with pytest.raises(KeyError, match="planted"):
        await in_quiet_thread(lambda: {}["planted"])


@pytest.mark.parametrize("error", [None, KeyError("planted")])
async def test_who_gives_up_waiting_leaves_it_to_end_by_itself(
    capfd: pytest.CaptureFixture[str], error: BaseException | None
) -> None:
    """Neither its result nor its error has anybody to be told, and neither is a fault."""
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(10)
        if error is not None:
            raise error

    waiting = asyncio.create_task(in_quiet_thread(work))
    await asyncio.to_thread(begun.wait, 10)
    assert any_quiet_thread()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    (thread,) = (one for one in threading.enumerate() if one.name == "loading")
    go.set()
    await asyncio.to_thread(thread.join, 10)
    assert not any_quiet_thread()
    assert "Traceback" not in capfd.readouterr().err
