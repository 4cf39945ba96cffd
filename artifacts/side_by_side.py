"""Two slow pieces of work side by side: what both come to, or the error of one.

Owns the thread that this takes, and that nothing outlives a failure. Knows nothing of what is done;
it gains where the work leaves the interpreter's lock, as loading a graph does.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Here = TypeVar("_Here")
_Beside = TypeVar("_Beside")


def side_by_side(here: Callable[[], _Here], beside: Callable[[], _Beside]) -> tuple[_Here, _Beside]:
    """Do one on this thread and the other on a thread of its own; returns when both have ended.

    The other thread has this one's niceness. Where both fail, the error is that of ``here``.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="beside") as pool:
        other = pool.submit(beside)
        own = here()
    try:
        return own, other.result()
    finally:
        # The error's traceback leads here, and from here to the error: with this frame's hold on
        # what did not fail, hundreds of megabytes would wait for the garbage collector.
        del own, other
