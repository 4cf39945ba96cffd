"""Work on a thread of its own that gives way to everybody else on the machine.

Loading a model prepares its weights for minutes' worth of small work; beside streams it must not
cost their latency. Knows nothing of what is done.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")
_NAME = "loading"
_LAST = 19  # the niceness of whoever gets what is left


async def in_quiet_thread(work: Callable[[], _Result]) -> _Result:
    """Run and wait; a thread of a pool would stay slow for whoever gets it next.

    Who gives up waiting does not stop it: what it comes to is then dropped.
    """
    done: Future[_Result] = Future()
    done.set_running_or_notify_cancel()  # from now on nobody can cancel it

    def run() -> None:
        # On Linux a thread has a niceness of its own; threads that it starts inherit it.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LAST)
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, name=_NAME, daemon=True).start()
    return await asyncio.wrap_future(done)


def any_quiet_thread() -> bool:
    """Whether such work goes on; a process that ends in the middle of it must not clean up."""
    return any(thread.name == _NAME for thread in threading.enumerate())
