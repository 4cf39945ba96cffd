"""The engine's thread: commands in, one step of one variant after another, events out.

Owns the lanes and the loop. Idle costs nothing: the thread sleeps in its inbox. Knows nothing of
sequences' insides, of asyncio or of who reads the events.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import assert_never

from artifacts.errors import StepTerminatedError
from server.engine.lane import Lane, refusal
from server.engine.messages import (
    Attach,
    Cancel,
    Command,
    Deliver,
    Detach,
    EngineObserver,
    Event,
    FailureCode,
    Generated,
    Lost,
    Submit,
)
from server.engine.turns import Turns

HANG_FACTOR = 10.0
"""A step that takes this many times its predicted time hangs."""


class _Stop:
    """Wakes the thread up to end."""


class Engine:
    """Runs all variants of a process, one step at a time.

    Args:
        deliver: Takes all events of a step; called on the engine's thread.
        observer: Is told of steps and failures; same thread.
        lost: Is told of a variant that could not be loaded again after a failure; same thread.
        clock: Monotonic seconds.
        hang_floor_s: No step counts as hanging before it took this long.
    """

    def __init__(
        self,
        deliver: Deliver,
        observer: EngineObserver | None = None,
        *,
        lost: Lost = lambda variant, reason: None,  # noqa: ARG005 - nobody wants to know
        clock: Callable[[], float] = time.monotonic,
        hang_floor_s: float = 30.0,
    ) -> None:
        self._deliver = deliver
        self._observer = observer or EngineObserver()
        self._lost = lost
        self._clock = clock
        self._hang_floor_s = hang_floor_s
        self._inbox: queue.SimpleQueue[Command | _Stop] = queue.SimpleQueue()
        self._lanes: dict[str, Lane] = {}
        self._owners: dict[str, str] = {}  # request -> variant
        self._turns = Turns()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False
        self._aborted = False
        # (lane, when it hangs) while a step runs; read by other threads.
        self._step: tuple[Lane, float] | None = None

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def post(self, command: Command) -> None:
        """Hand in a command from any thread; never blocks."""
        self._inbox.put(command)

    def stop(self, timeout_s: float = 5.0) -> bool:
        """End the thread after the running step; requests still open end UNAVAILABLE.

        Returns:
            Whether it ended in time.
        """
        self._inbox.put(_Stop())
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def alive(self) -> bool:
        """Whether the thread runs and no step hangs."""
        return self._thread.is_alive() and self.overdue() is None

    def overdue(self) -> str | None:
        """The variant whose step hangs, if one does."""
        step = self._step
        if step is None:
            return None
        lane, limit_s = step
        return lane.variant if self._clock() > limit_s else None

    def abort(self, timeout_s: float = 2.0) -> bool:
        """End a hanging step by force; all requests end UNAVAILABLE and the thread ends.

        Returns:
            Whether it ended in time.
        """
        self._aborted = True
        step = self._step
        if step is not None:
            step[0].session.terminate()
        return self.stop(timeout_s)

    def _run(self) -> None:
        while not self._stopping:
            self._receive(block=False)
            if self._stopping:
                break
            name = self._turns.next(lane.variant for lane in self._lanes.values() if lane.busy)
            if name is None:
                self._receive(block=True)
            else:
                self._advance(self._lanes[name])
        for lane in self._lanes.values():
            self._emit(lane.fail_all(FailureCode.UNAVAILABLE, "The server is stopping."))

    def _receive(self, *, block: bool) -> None:
        """Take all commands that are there; wait for the first one when there is nothing to do."""
        try:
            self._handle(self._inbox.get(block=block))
            while True:
                self._handle(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _handle(self, command: Command | _Stop) -> None:
        match command:
            case Submit():
                self._submit(command)
            case Cancel():
                self._cancel(command)
            case Attach():
                self._attach(command)
            case Detach():
                self._detach(command.variant, "The variant is no longer served.")
            case _Stop():
                self._stopping = True
            case _:
                assert_never(command)

    def _submit(self, request: Submit) -> None:
        lane = self._lanes.get(request.variant)
        if lane is None:
            self._emit([refusal(request, "The variant is not served.")])
            return
        self._owners[request.request_id] = request.variant
        refused = lane.submit(request)
        self._emit([refused] if refused else [])
        self._observer.loaded(request.variant, lane.load())

    def _cancel(self, command: Cancel) -> None:
        variant = self._owners.get(command.request_id)
        if variant is None:
            return
        lane = self._lanes[variant]
        event = lane.cancel(command.request_id, command.finish)
        if event is not None:
            self._emit([event])
        self._observer.loaded(variant, lane.load())

    def _attach(self, command: Attach) -> None:
        if command.variant in self._lanes:
            self._detach(command.variant, "The variant is being replaced.")
        lane = Lane(command, self._clock)
        self._lanes[command.variant] = lane
        self._turns.add(command.variant, command.weight)
        self._observer.loaded(command.variant, lane.load())

    def _detach(self, variant: str, message: str) -> None:
        lane = self._lanes.pop(variant, None)
        if lane is None:
            return
        self._turns.remove(variant)
        self._emit(lane.fail_all(FailureCode.UNAVAILABLE, message))
        self._observer.loaded(variant, lane.load())

    def _advance(self, lane: Lane) -> None:
        self._emit(lane.expire())
        limit_s = self._clock() + max(HANG_FACTOR * lane.slowest_step_s, self._hang_floor_s)
        self._step = (lane, limit_s)
        try:
            events, kind, seconds = lane.step()
        except Exception as error:  # noqa: BLE001 - it must end its requests, not the thread
            self._recover(lane, error)
            return
        finally:
            self._step = None
        self._turns.charge(lane.variant, seconds)
        self._emit(events)
        if kind is None:
            self._observer.loaded(lane.variant, lane.load())
        else:
            self._observer.stepped(lane.variant, kind, seconds, lane.load())

    def _recover(self, lane: Lane, error: Exception) -> None:
        """End the failed step's requests and give the lane a fresh session."""
        self._observer.failed(lane.variant, error)
        if self._aborted and isinstance(error, StepTerminatedError):
            self._stopping = True
            return
        self._emit(lane.fail_running("A step of the model failed."))
        try:
            lane.session = lane.rebuild()
        except Exception as rebuild_error:  # noqa: BLE001 - the other variants go on
            self._observer.failed(lane.variant, rebuild_error)
            reason = "The model could not be loaded again after a failed step."
            self._detach(lane.variant, reason)
            self._lost(lane.variant, reason)
            return
        self._observer.loaded(lane.variant, lane.load())

    def _emit(self, events: list[Event]) -> None:
        if not events:
            return
        for event in events:
            if not isinstance(event, Generated):
                self._owners.pop(event.request_id, None)
        self._deliver(events)
