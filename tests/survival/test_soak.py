"""Memory, slots, gauges and descriptors after very many requests, a part of them left alone."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from scipy.stats import theilslopes

from tests.survival.conftest import Survivor
from tests.survival.soak import CANCELLED, LATE, Soak

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "100000"))
# What the server remembers is bounded, and full by then: latencies of 4096 requests of each variant
# for Compare, words of the tokenizer, the allocator's own reserves.
WARM_UP = int(os.environ.get("SOAK_WARM_UP", "15000"))
MOST_BYTES_PER_REQUEST = (2 << 20) / 10_000
SAMPLES = 50


def soak(survivor: Survivor, count: int) -> tuple[float, Soak]:
    """Run a load; give the slope of resident memory in bytes per request, and how it ended."""
    load = Soak(survivor.server.target, survivor.server.http_url)
    samples: list[tuple[int, int]] = []
    begun = time.monotonic()

    def sample(done: int) -> None:
        samples.append((done, survivor.process.memory_info().rss))

    asyncio.run(load.run(count, sample, max(1, count // SAMPLES)))
    rate = count / (time.monotonic() - begun)
    slope = float(theilslopes([rss for _, rss in samples], [done for done, _ in samples]).slope)
    few = samples[:: max(1, len(samples) // 8)]
    megabytes = " ".join(f"{rss / (1 << 20):.1f}" for _, rss in few)
    print(f"{count} requests, {rate:.0f}/s, {slope:.1f} bytes each, MiB: {megabytes}")  # noqa: T201
    return slope, load


def warm_up(survivor: Survivor, count: int) -> int:
    """Let caches fill that are bounded; give the open descriptors of an idle server."""
    soak(survivor, count)
    survivor.settle()
    time.sleep(1)  # connections of the load are closed by both sides
    return survivor.process.num_fds()


def judge(survivor: Survivor, load: Soak, count: int, descriptors: int) -> None:
    """Each request has one final status, and nothing is left of any."""
    assert load.ended.total() == load.meant.total() == count
    assert set(load.ended) <= {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}, load.ended
    assert load.ended["OK"] >= load.meant["answered"]
    survivor.check()
    survivor.server.wait_for(lambda: survivor.process.num_fds() <= descriptors or None, 60)


def test_a_short_soak_leaves_nothing_behind(survivor: Survivor) -> None:
    """Some hundred requests; memory is judged by the long one."""
    descriptors = warm_up(survivor, 100)
    before = survivor.ended()
    _, load = soak(survivor, 300)
    judge(survivor, load, 300, descriptors)
    counted = survivor.ended() - before
    assert counted["ok"] >= load.ended["OK"]
    assert set(counted) <= {"ok", "cancelled", "deadline_exceeded"}


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_memory_does_not_grow_with_requests(survivor: Survivor) -> None:
    """Less than 2 MB per 10,000 requests after warm-up (``SOAK_REQUESTS``, 100,000 unless set)."""
    descriptors = warm_up(survivor, WARM_UP)
    slope, load = soak(survivor, REQUESTS)
    judge(survivor, load, REQUESTS, descriptors)
    assert abs(load.meant["cancelled"] / REQUESTS - CANCELLED) < 0.02
    assert abs(load.meant["late"] / REQUESTS - LATE) < 0.02
    assert slope < MOST_BYTES_PER_REQUEST
