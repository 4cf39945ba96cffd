"""The running server: what is started in which order, and what stopping means.

Owns the parts (engine, core, listeners, variants' lifecycle) and the process's signals. Config
ends here: every part gets plain arguments. Knows nothing of how any part does its work.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import structlog

from artifacts import machine
from artifacts.host_figures import HostFigures, read_figures
from artifacts.protocol import BuildRequest, PlannedVariant
from artifacts.runtime import Threads, share_threads
from artifacts.store import Store
from server.access import Right
from server.allowed import Allowed
from server.announcer import Announcer
from server.catalog import VariantState, VariantView
from server.comparer import Comparer
from server.comparison.machine import this_machine
from server.config.budgets import budget_with
from server.config.speculations import drafts_of
from server.core import Core
from server.engine.engine import Engine
from server.exit_codes import ExitCode
from server.lifecycle import Lifecycle
from server.limits import RequestLimits
from server.listeners import Addresses, Listeners
from server.loading import LoadSettings, load
from server.observer import Observers, RequestObserver
from server.operations import Operations
from server.ops import routes
from server.optimizer import Optimizer
from server.planning import Planned, chains_of, plan_one
from server.request_log import RequestLog
from server.rpc.admin import AdminService
from server.rpc.health import HealthService
from server.telemetry import Telemetry
from server.tracing.settings import open_tracing, tracing_settings
from server.variants import Variants, Watcher

_log = structlog.get_logger(__name__)

_LOOK_S = 1.0  # how often the engine's heartbeat is looked at
_TEXT_THREADS = 2  # encode prompts and decode text


class App:
    """One server, from its parts to its exit code.

    Args:
        planned: A config whose every chain is valid.
        optimizer: Builds what the store does not hold.
        watchers: Told of every change of a variant.
        listening: Told once where the server listens.
        started_s: When the process began, on the clock.
        plan_s: How long judging the config took.
        clock: Monotonic seconds.

    Raises:
        TracingError: Tracing is wanted and cannot be had.
    """

    def __init__(
        self,
        planned: Planned,
        optimizer: Optimizer,
        *,
        watchers: tuple[Watcher, ...] = (),
        listening: Callable[[Addresses], None],
        started_s: float,
        plan_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        config = planned.config
        self._planned = planned
        self._config = config
        self._listening = listening
        self._loop = asyncio.get_running_loop()
        model = _model_label(config.model)
        wanted = tracing_settings(
            config.telemetry.otlp_endpoint, config.telemetry.sample_ratio, os.environ
        )
        self._tracing = None if wanted is None else open_tracing(wanted, model)
        self._telemetry = Telemetry(model)
        self._telemetry.took("plan", plan_s)
        self._variants = Variants(tuple(config.variants), config.traffic, clock=clock)
        for name in self._variants.names():
            self._telemetry.add_variant(name)
        self._cores = config.engine.threads or machine.usable_cores()
        self._engine = Engine(
            lambda events: self._core.deliver(events),  # noqa: PLW0108 - made below
            self._telemetry,
            lost=self._lost,
            clock=clock,
            hang_floor_s=config.engine.hang_seconds,
        )
        self._texts = ThreadPoolExecutor(_TEXT_THREADS, thread_name_prefix="text")
        self._grammars = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._comparer = Comparer(self._telemetry.seconds_per_token)
        self._core = Core(
            self._variants,
            self._engine.post,
            executor=self._texts,
            grammar_executor=self._grammars,
            observer=Observers(*self._observers()),
            limits=RequestLimits(**config.server.limits.model_dump()),
            max_queue_s=config.engine.max_queue_seconds,
            clients=sum(Right.GENERATE in token.rights for token in config.server.tokens),
            clock=clock,
        )
        drafts = drafts_of(config)
        self._lifecycle = Lifecycle(
            variants=self._variants,
            planned=dict(planned.response.variants),
            request=self._build_request,
            optimizer=optimizer,
            store=Store(planned.store),
            load=partial(load, settings=self._load_settings(), clock=clock),
            post=self._engine.post,
            record=self._telemetry,
            step_tokens=config.engine.step_tokens,
            budgets=planned.budgets,
            clock=clock,
            figures=self._figures,
            drafts=drafts,
        )
        self._operations = Operations(
            self._variants,
            self._lifecycle,
            partial(plan_one, config, optimizer),
            self._engine.post,
            allowed=Allowed(
                frozenset(config.admin.models), tuple(Path(root) for root in config.admin.roots)
            ),
            chains=chains_of(config),
            budgets=planned.budgets,
            budget=partial(budget_with, config),
            drafts=drafts,
            added=self._telemetry.add_variant,
        )
        self._health = HealthService()
        self._nothing_left = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._cut_asked = asyncio.Event()
        self._draining = False
        self._alive = True
        self._was_settled = False
        announcer: Watcher = Announcer(
            self._telemetry, self._variants, started_s=started_s, clock=clock
        )
        for watcher in (announcer, self._comparer.changed, self._changed, *watchers):
            self._variants.watch(watcher)

    async def run(self) -> ExitCode:
        """Serve until asked to stop, until nothing can be served, or until the engine hangs.

        Raises:
            ListenError: A port cannot be had.
        """
        with self._signals():
            return await self._run()

    async def _run(self) -> ExitCode:
        operators = routes(self._telemetry.registry, self)
        admin = AdminService(self._core, self._operations, self._comparer)
        listeners = Listeners(
            self._core,
            self._health,
            operators,
            admin,
            self._config.server,
            tracing=self._tracing,
        )
        self._refresh_health()
        await listeners.start()
        self._engine.start()
        self._listening(listeners.addresses)
        lifecycle = asyncio.create_task(self._lifecycle.run())
        try:
            code = await self._serve(lifecycle)
            await self._shut_down(lifecycle, listeners, code)
        finally:
            await listeners.close()
            if self._tracing is not None:
                await self._tracing.close()
            for executor in (self._texts, self._grammars):
                executor.shutdown(cancel_futures=True)
        return code

    # How the server is (``server.ops.Health``).

    def alive(self) -> bool:
        """Whether the engine works."""
        return self._alive and self._engine.alive()

    def serving(self) -> bool:
        """Whether any variant that routed traffic goes to takes requests."""
        takers = self._variants.takers
        return any(self._serves(view) for view in self._variants.views if view.name in takers)

    def draining(self) -> bool:
        """Whether the server is on its way out."""
        return self._draining

    def settled(self) -> bool:
        """Whether every variant was once ready or failed.

        One that is replaced later takes no other from those who are served.
        """
        return self._was_settled

    def views(self) -> tuple[VariantView, ...]:
        """All variants."""
        return self._variants.views

    # The beats of ``run``.

    async def _serve(self, lifecycle: asyncio.Task[None]) -> ExitCode:
        stop = asyncio.create_task(self._stop_asked.wait())
        hang = asyncio.create_task(self._watch_engine())
        bare = asyncio.create_task(self._nothing_left.wait())
        ends = (stop, hang, bare)
        try:
            await asyncio.wait((*ends, lifecycle), return_when=asyncio.FIRST_COMPLETED)
            if not any(end.done() for end in ends):
                await lifecycle  # a fault of the lifecycle itself is raised here
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if hang.done():
                return ExitCode.HANG
            if stop.done():
                return ExitCode.OK
            _log.error("no variant can be served")
            return ExitCode.FAILURE
        finally:
            for end in ends:
                end.cancel()

    async def _watch_engine(self) -> None:
        """Return when the engine hangs or its thread is gone."""
        while self._engine.alive():  # noqa: ASYNC110 - a hang sends no event
            await asyncio.sleep(_LOOK_S)
        variant = self._engine.overdue()
        if variant is None:
            _log.critical("the engine's thread has ended")
        else:
            _log.critical("the engine hangs", variant=variant)

    async def _shut_down(
        self, lifecycle: asyncio.Task[None], listeners: Listeners, code: ExitCode
    ) -> None:
        self._draining = True
        self._core.drain()
        self._refresh_health()
        await self._operations.close()
        lifecycle.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await lifecycle
        if code is ExitCode.HANG:
            self._alive = False
            await asyncio.to_thread(self._engine.abort)
        else:
            await self._drain(listeners)
        self._core.end_all("The server is stopping.")
        self._health.close()
        await listeners.close_public()
        if code is not ExitCode.HANG and not await asyncio.to_thread(self._engine.stop):
            _log.warning("the engine did not end in time")

    async def _drain(self, listeners: Listeners) -> None:
        """Let running streams finish and be read, up to the limit or a second signal."""
        seconds = self._config.server.drain_seconds
        if self._core.unfinished:
            _log.info("draining", requests=self._core.unfinished, seconds=seconds)
        done = asyncio.create_task(self._hand_over(listeners, seconds))
        cut = asyncio.create_task(self._cut_asked.wait())
        await asyncio.wait((done, cut), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            _log.warning("cutting streams", requests=self._core.unfinished)
        done.cancel()
        cut.cancel()

    async def _hand_over(self, listeners: Listeners, seconds: float) -> None:
        """Wait until every answer was taken, and then until the transport has sent it."""
        await self._core.wait_idle()
        self._health.close()  # watches would hold the server for as long as they may
        await listeners.hand_over(seconds)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handled = (signal.SIGTERM, signal.SIGINT)
        for number in handled:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    def _signalled(self, number: signal.Signals) -> None:
        if self._stop_asked.is_set():
            self._cut_asked.set()
        else:
            _log.info("stopping", signal=signal.Signals(number).name)
            self._stop_asked.set()

    def _observers(self) -> Iterator[RequestObserver]:
        """Who hears of requests."""
        yield self._telemetry
        yield self._comparer
        if self._config.log.requests:
            yield RequestLog()
        if self._tracing is not None:
            yield self._tracing.spans

    # Variants.

    def _changed(self, view: VariantView) -> None:
        self._was_settled = self._was_settled or self._variants.settled
        if (
            view.state is VariantState.FAILED
            and self._variants.settled
            and not self._variants.any_ready
        ):
            self._nothing_left.set()
        self._refresh_health()

    def _figures(self, artifact: str) -> HostFigures | None:
        """What was measured of an artifact on this machine, with as many threads."""
        host = this_machine().host(self._cores)
        return read_figures(Store(self._planned.store).layout, artifact, host)

    def _lost(self, name: str, reason: str) -> None:
        """The engine serves a variant no longer; called on its thread."""
        state = VariantState.FAILED
        self._loop.call_soon_threadsafe(
            partial(self._variants.change, name, state=state, error=reason)
        )

    def _serves(self, view: VariantView) -> bool:
        return view.state is VariantState.READY and not self._draining and self.alive()

    def _refresh_health(self) -> None:
        self._health.set("", serving=self.serving())
        for view in self._variants.views:
            self._health.set(view.name, serving=self._serves(view))

    def _build_request(self, name: str, planned: PlannedVariant) -> BuildRequest:
        cores = machine.usable_cores()
        threads = math.ceil(cores / 2) if self._variants.any_ready else cores
        return self._planned.build_request(name, planned, threads=threads)

    def _load_settings(self) -> LoadSettings:
        engine = self._config.engine
        threads: Threads = share_threads(self._cores)
        return LoadSettings(
            slots=engine.slots,
            max_length=engine.max_length,
            kv_bytes=engine.kv_bytes,
            memory_bytes=machine.available_memory_bytes() // len(self._config.variants),
            max_waiting=engine.max_waiting,
            threads=threads,
            step_tokens=engine.step_tokens,
            available_bytes=machine.available_memory_bytes,
        )


def _model_label(model: str) -> str:
    """The model's name without the path of one machine."""
    return Path(model).name if model.startswith(("/", "~", ".")) else model
