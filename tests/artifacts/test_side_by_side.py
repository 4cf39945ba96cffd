"""Two pieces of work at once: really at once, and leaving nothing behind where one fails."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from artifacts.side_by_side import side_by_side


class Heavy:
    """What must not outlive its use."""


def failing() -> NoReturn:
    raise KeyError("planted")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what nobody refers to any longer goes away."""
    gc.disable()
    yield
    gc.enable()


def test_both_are_done_at_once() -> None:
    """Each waits for the other: one after the other they would never end."""
    meeting = threading.Barrier(2)

    def meet(said: str) -> str:
        meeting.wait(10)
        return said

    assert side_by_side(lambda: meet("here"), lambda: meet("beside")) == ("here", "beside")


def test_first_is_done_on_the_caller_s_thread() -> None:
    """What it needs of its thread is there."""
    here, beside = side_by_side(threading.get_ident, threading.get_ident)
    assert here == threading.get_ident() != beside


@pytest.mark.parametrize("here_fails", [True, False])
def test_a_failure_is_told_when_the_other_has_ended(*, here_fails: bool) -> None:
    """Nothing of it goes on behind the caller's back."""
    ended = []

    def slow() -> None:
        time.sleep(0.1)
        ended.append(True)

    with pytest.raises(KeyError, match="planted"):
        side_by_side(*((failing, slow) if here_fails else (slow, failing)))
    assert ended
    assert not [one for one in threading.enumerate() if one.name.startswith("beside")]


def test_of_two_failures_the_first_is_told() -> None:
    """Always the same one, whichever came first."""

    def other() -> None:
        raise ValueError("other")

    with pytest.raises(KeyError, match="planted"):
        side_by_side(failing, other)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("here_fails", [True, False])
def test_what_did_not_fail_goes_with_the_error(*, here_fails: bool) -> None:
    """Half a variant is hundreds of megabytes, which nobody must wait for the collector to get."""
    made: list[weakref.ref[Heavy]] = []

    def heavy() -> Heavy:
        one = Heavy()
        made.append(weakref.ref(one))
        return one

    def attempt(here: Callable[[], Heavy], beside: Callable[[], Heavy]) -> None:
        try:
            side_by_side(here, beside)
        except KeyError:
            return
        pytest.fail("nothing failed")

    attempt(*((failing, heavy) if here_fails else (heavy, failing)))
    assert made
    assert made[0]() is None


def test_both_give_way_where_the_caller_does() -> None:
    """A model that is loaded beside streams must not cost their latency on either thread."""
    found: list[tuple[int, int]] = []

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def work() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        found.append(side_by_side(niceness, niceness))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert found == [(19, 19)]
