"""The engine's thread: commands in, one step of one variant after another, events out.

Owns the lanes and the loop. Idle costs nothing: the thread sleeps in its inbox. Knows nothing of
sequences' insides, of asyncio or of who reads the events.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import assert_never

from artifacts.errors import StepTerminatedError
from server.engine.giving_way import GivingWay
from server.engine.lane import Lane, refusal
from server.engine.messages import (
    Attach,
    Cancel,
    Command,
    Deliver,
    Detach,
    EngineObserver,
    Event,
    Failed,
    FailureCode,
    Generated,
    GiveWay,
    Lost,
    Reweigh,
    Submit,
    Timings,
    Usage,
)
from server.engine.turns import Turns

HANG_FACTOR = 10.0
"""A step that takes this many times its predicted time hangs."""

RELOAD_FACTOR = 10.0
"""Loading a session anew may take this many times what any step may."""

BACKGROUND_SHARE = 0.05
"""Weight of each lane's work that nobody waits for, where 1 is an equal variant's."""

_BACKGROUND = "/background"  # no name of a variant ends like this
_NOT_SERVED = "The variant is not served."


class _Stop:
    """Wakes the thread up to end."""


@dataclass(frozen=True, slots=True)
class _Running:
    """What the thread is busy with: whose, until when it may take, and what can be terminated."""

    variant: str
    limit_s: float
    terminate: Callable[[], None] | None


class Engine:
    """Runs all variants of a process, one step at a time.

    Args:
        deliver: Takes all events of a step; called on the engine's thread.
        observer: Is told of steps and failures; same thread.
        lost: Is told of a variant that could not be loaded again after a failure; same thread.
        clock: Monotonic seconds.
        pause: Sleeps for some seconds.
        hang_floor_s: No step counts as hanging before it took this long.
    """

    def __init__(
        self,
        deliver: Deliver,
        observer: EngineObserver | None = None,
        *,
        lost: Lost = lambda variant, reason: None,  # noqa: ARG005 - nobody wants to know
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
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
        self._leaving: dict[str, Detach] = {}  # lanes that go as soon as they are idle
        self._turns = Turns()
        self._giving_way = GivingWay(clock, pause)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False
        self._aborted = False
        # While a step or a reload runs; read by other threads.
        self._running: _Running | None = None

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
        """The variant whose step or reload hangs, if one does."""
        running = self._running
        if running is None:
            return None
        return running.variant if self._clock() > running.limit_s else None

    def abort(self, timeout_s: float = 2.0) -> bool:
        """End a hanging step by force; all requests end UNAVAILABLE and the thread ends.

        Returns:
            Whether it ended in time.
        """
        self._aborted = True
        running = self._running
        if running is not None and running.terminate is not None:
            running.terminate()
        return self.stop(timeout_s)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001 - nobody above would tell of it
            self._give_up(error)

    def _serve(self) -> None:
        while not self._stopping:
            self._receive(block=False)
            if self._stopping:
                break
            self._see_off()
            turn = self._turns.next(self._wanting())
            if turn is None:
                self._receive(block=True)
                self._giving_way.rested()
            else:
                self._advance(turn)
                self._giving_way.stepped()
        for lane in self._lanes.values():
            self._settle(lane, lane.fail_all(FailureCode.UNAVAILABLE, "The server is stopping."))

    def _wanting(self) -> Iterator[str]:
        """Names of the turns that lanes would take: one for what is served, one for the rest."""
        for lane in self._lanes.values():
            if lane.serves:
                yield lane.variant
            if lane.has_background:
                yield lane.variant + _BACKGROUND

    def _give_up(self, error: BaseException) -> None:
        """Report a fault of the engine itself; end what is open, as nobody will serve it.

        Lanes are not asked, since one of them may be in any state: who has an owner has no final
        event yet.
        """
        self._running = None
        message = "The engine failed."
        try:
            self._observer.failed("", error)
        finally:
            nothing = Usage(0, 0, 0), Timings(0.0, 0.0, 0.0)
            code = FailureCode.INTERNAL
            self._emit([Failed(request, code, message, *nothing) for request in self._owners])
            while not self._inbox.empty():
                command = self._inbox.get()
                if isinstance(command, Submit):
                    self._emit([refusal(command, message)])

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
            case Detach(when_idle=True) if command.variant in self._lanes:
                self._leaving[command.variant] = command
            case Detach():
                self._detach(command.variant, _NOT_SERVED)
                command.gone()
            case Reweigh():
                self._turns.weigh(command.variant, command.weight)
            case GiveWay():
                self._giving_way.worker(begins=command.begins)
            case _Stop():
                self._stopping = True
            case _:
                assert_never(command)

    def _submit(self, request: Submit) -> None:
        lane = self._lanes.get(request.variant)
        if lane is None or request.variant in self._leaving:
            self._emit([refusal(request, _NOT_SERVED)])
            return
        self._owners[request.request_id] = request.variant
        refused = lane.submit(request)
        self._settle(lane, [refused] if refused else [])

    def _cancel(self, command: Cancel) -> None:
        variant = self._owners.get(command.request_id)
        if variant is None:
            return
        lane = self._lanes[variant]
        event = lane.cancel(command.request_id, command.finish)
        self._settle(lane, [event] if event else [])

    def _attach(self, command: Attach) -> None:
        if command.variant in self._lanes:
            self._detach(command.variant, "The variant is being replaced.")
        lane = Lane(command, self._clock)
        self._lanes[command.variant] = lane
        self._turns.add(command.variant, command.weight)
        self._turns.add(command.variant + _BACKGROUND, BACKGROUND_SHARE)
        self._settle(lane, [])

    def _see_off(self) -> None:
        """Let those lanes go that wanted to finish their requests first and have."""
        idle = [name for name in self._leaving if not self._lanes[name].busy]
        for variant in idle:
            self._detach(variant, _NOT_SERVED)

    def _detach(self, variant: str, message: str) -> None:
        lane = self._lanes.pop(variant, None)
        if lane is None:
            return
        self._turns.remove(variant)
        self._turns.remove(variant + _BACKGROUND)
        self._settle(lane, lane.fail_all(FailureCode.UNAVAILABLE, message))
        del lane  # and its session: who hears that it is gone may count on the memory
        if (leaving := self._leaving.pop(variant, None)) is not None:
            leaving.gone()

    def _advance(self, turn: str) -> None:
        variant = turn.removesuffix(_BACKGROUND)
        lane = self._lanes[variant]
        expired = lane.expire()
        if expired:
            self._settle(lane, expired)
        allowed_s = max(HANG_FACTOR * lane.slowest_step_s, self._hang_floor_s)
        self._running = _Running(lane.variant, self._clock() + allowed_s, lane.terminate)
        events: list[Event] = []
        try:
            stepped = lane.step(events, background=variant != turn)
        except Exception as error:  # noqa: BLE001 - it must end its requests, not the thread
            self._running = None
            self._recover(lane, error, events)
            return
        self._running = None
        if stepped is None:
            self._settle(lane, events)
            return
        self._turns.charge(turn, stepped.seconds)
        self._observer.stepped(lane.variant, stepped.kind, stepped.seconds, lane.load())
        if stepped.drafted:
            self._observer.drafted(lane.variant, stepped.drafted, stepped.accepted)
        self._emit(events)

    def _recover(self, lane: Lane, error: Exception, events: list[Event]) -> None:
        """End the failed step's requests and give the lane a fresh session.

        ``events`` are what the step had come to before it failed.
        """
        self._observer.failed(lane.variant, error)
        if self._aborted and isinstance(error, StepTerminatedError):
            self._stopping = True
            return
        self._settle(lane, events + lane.fail_running("A step of the model failed."))
        _let_go(error)
        allowed_s = RELOAD_FACTOR * self._hang_floor_s
        self._running = _Running(lane.variant, self._clock() + allowed_s, None)
        try:
            lane.reload()
        except Exception as reload_error:  # noqa: BLE001 - the other variants go on
            self._observer.failed(lane.variant, reload_error)
            reason = "The model could not be loaded again after a failed step."
            self._detach(lane.variant, reason)
            self._lost(lane.variant, reason)
        finally:
            self._running = None

    def _settle(self, lane: Lane, events: list[Event]) -> None:
        """Show the gauges, then deliver: who has an answer may look at them at once."""
        self._observer.loaded(lane.variant, lane.load())
        self._emit(events)

    def _emit(self, events: list[Event]) -> None:
        if not events:
            return
        for event in events:
            if not isinstance(event, Generated):
                self._owners.pop(event.request_id, None)
        self._deliver(events)


def _let_go(error: BaseException) -> None:
    """Clear the frames that an exception keeps: they hold the session that failed."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
