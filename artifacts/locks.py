"""Who may write what in a store at the same time.

Owns three rules: one builder per recipe or intermediate result; any number of builders at once;
nobody collects garbage while a builder is at work. Locks are the operating system's, so a killed
process holds none. Knows nothing of what is built.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock

from artifacts.layout import Layout, storing

BUILDERS = "builders.lock"


@contextmanager
def exclusive(layout: Layout, name: str) -> Iterator[None]:
    """Be the only one to make the thing called ``name``; waits for whoever is making it."""
    with storing(layout.root):
        lock = FileLock(layout.locks / f"{name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def building(layout: Layout) -> Iterator[None]:
    """Keep the collector away while the body runs; shared with other builders."""
    with storing(layout.root):
        descriptor = os.open(layout.locks / BUILDERS, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def collecting(layout: Layout) -> Iterator[bool]:
    """Keep builders away while the body runs; gives False, at once, when one is at work."""
    with storing(layout.root):
        descriptor = os.open(layout.locks / BUILDERS, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
