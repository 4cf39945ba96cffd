"""What may be changed while the server runs: which variants there are, and where traffic goes.

Owns the order of the checks, the history of traffic, and that one variant is loaded at a time. A
load that fails leaves traffic as it is. Lives on the event loop. Knows nothing of gRPC, or of how a
variant is built and attached.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

import structlog

from artifacts.protocol import FieldError, PlannedVariant
from server.allowed import Allowed
from server.budget import Budget
from server.catalog import BudgetState, VariantState, VariantView
from server.config.errors import told
from server.config.fields import NAME_PATTERN, BudgetSection
from server.config.speculations import problem_of_drafts
from server.drafts import OTHER_TOKENS, OTHER_TOKENS_REMEDY, Choice, Drafts
from server.engine.messages import Command, Reweigh
from server.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    OptimizerError,
    PreconditionError,
    RequestError,
    UnavailableError,
    UnknownVariantError,
)
from server.routing import ROUTED
from server.traffic import History, Shadow, Traffic
from server.variants import Variants, engine_share

_MOST_VARIANTS = 64
_HEAVIEST = 1_000_000.0
_GONE = frozenset({VariantState.FAILED, VariantState.UNLOADED})
_SETTLED = frozenset({VariantState.READY, *_GONE})
_OF_ANOTHER = ("error", "artifact", "manifest", "budget", "figures", "drafts")  # than is loaded

_log = structlog.get_logger(__name__)


class Loading(Protocol):
    """Who brings variants up and takes them down (the lifecycle)."""

    async def bring_up(
        self, name: str, planned: PlannedVariant, budget: Budget | None, drafts: Drafts | None
    ) -> None:
        """Bring one up; its view tells what came of it."""
        ...

    async def may_draft(self, drafter: str, planned: PlannedVariant) -> bool:
        """Whether a variant's tokens are those of what is planned, as far as is known by now."""
        ...

    async def take_down(self, name: str) -> None:
        """Take one down once its requests have ended."""
        ...


class Planner(Protocol):
    """Who judges a chain."""

    async def __call__(
        self, name: str, chain: Sequence[Any]
    ) -> PlannedVariant | Sequence[FieldError]:
        """The chain as it would be built, or what is wrong with it."""
        ...


class Operations:
    """One server's operations.

    Args:
        variants: What is known of them.
        loading: Brings them up and down.
        plan: Judges chains.
        post: Hands commands to the engine.
        allowed: What chains may name.
        chains: Of the config's variants, as they were read.
        budgets: Of the config's variants that have one.
        budget: The config's, with the fields that are sent for one variant in their place.
        drafts: Where the drafted tokens of those of the config's variants come from that have any.
        added: Is told of a variant that there was not before.
    """

    def __init__(
        self,
        variants: Variants,
        loading: Loading,
        plan: Planner,
        post: Callable[[Command], None],
        *,
        allowed: Allowed,
        chains: Mapping[str, Sequence[Any]],
        budgets: Mapping[str, Budget],
        budget: Callable[[BudgetSection | None], Budget | None],
        drafts: Mapping[str, Drafts],
        added: Callable[[str], None],
    ) -> None:
        self._variants = variants
        self._loading = loading
        self._plan = plan
        self._post = post
        self._allowed = allowed
        self._chains = dict(chains)
        self._budgets: dict[str, Budget | None] = dict.fromkeys(chains)
        self._budgets.update(budgets)
        self._budget = budget
        self._drafts: dict[str, Drafts | None] = dict(drafts)
        self._added = added
        self._history = History(Traffic(dict(variants.traffic)))
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def load(
        self,
        name: str,
        chain: Sequence[Any] | None,
        budget: BudgetSection | None,
        speculation: Choice | None = None,
    ) -> AsyncGenerator[VariantView]:
        """Load a variant; gives its view whenever it changes, until it is ready or has failed.

        Who leaves does not stop it, from the first moment on.

        Args:
            name: A new one, or that of a variant that does not serve.
            chain: Its stages; None for those that it had.
            budget: What it may lose; None for what it had, or what the config says of all.
            speculation: Where its drafted tokens come from; None for where they came from before.

        Raises:
            RequestError: It is not even begun.
        """
        chain = self._check_load(name, chain)
        if speculation is not None and speculation.drafts is not None:
            self._check_drafts(name, speculation.drafts)
        self._busy.add(name)
        changed = asyncio.Event()
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        begun.add_done_callback(lambda done: done.exception())  # there may be nobody to hear it
        work = self._load(name, chain, budget, speculation, begun=begun, changed=changed)
        self._start(work)
        await asyncio.shield(begun)
        async for view in self._views(name, changed):
            yield view

    def is_ready(self, name: str) -> bool:
        """Whether there is a variant of this name that serves."""
        view = self._variants.get(name)
        return view is not None and view.state is VariantState.READY

    async def unload(self, name: str) -> None:
        """Unload a variant once the requests that it has have ended.

        Raises:
            RequestError: It does not serve, or traffic still goes to it.
        """
        self._refuse_when_closed()
        view = self._known(name)
        if name in self._busy:
            raise PreconditionError(f"variant {name!r} is being loaded or unloaded; wait for it.")
        if view.state is not VariantState.READY:
            raise PreconditionError(f"variant {name!r} does not serve: it is {view.state.value}.")
        if name in self._history.now.takers(self._variants.default):
            raise PreconditionError(
                f"variant {name!r} takes routed traffic; direct it elsewhere with SetTraffic or "
                "Promote first."
            )
        shadow = self._variants.shadow
        if shadow is not None and shadow.candidate == name:
            raise PreconditionError(
                f"variant {name!r} is the shadow; end it with SetTraffic first."
            )
        self._busy.add(name)
        # Also when its caller leaves: half-unloaded is nothing.
        task = self._start(self._unload(name))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                self._refuse_when_closed()
            raise

    @property
    def traffic(self) -> Traffic:
        """Where routed traffic goes."""
        return self._history.now

    def set_traffic(self, weights: Mapping[str, float], shadow: Shadow | None) -> Traffic:
        """Direct routed traffic, and choose who is judged on it.

        Raises:
            RequestError: A name is unknown or does not serve, or a number is out of bounds.
        """
        for name, weight in weights.items():
            field = f"weights[{name[:64]}]"
            if not 0 <= weight <= _HEAVIEST:
                remedy = f"use 0 to {_HEAVIEST:g}"
                raise InvalidRequestError(field, f"{weight:g} is out of bounds", remedy)
            self._known(name)
        if weights and not any(weight > 0 for weight in weights.values()):
            raise InvalidRequestError("weights", "are all 0", "give one variant a weight above 0")
        traffic = Traffic(dict(weights), shadow)
        for name in sorted(traffic.takers(self._variants.default)):
            self._require_ready(name)
        if shadow is not None:
            self._require_ready(shadow.candidate)
            if not 0 < shadow.fraction <= 1:
                problem = f"{shadow.fraction:g} is out of bounds"
                raise InvalidRequestError("shadow.fraction", problem, "use a value in (0, 1]")
        return self._change(traffic)

    def promote(self, name: str) -> Traffic:
        """Give one variant all routed traffic.

        Raises:
            RequestError: It is unknown, or does not serve.
        """
        self._require_ready(name)
        return self._change(self._history.now.promoted(name))

    def roll_back(self) -> Traffic:
        """Take the latest change of traffic back; variants that serve no longer are left out.

        Raises:
            RequestError: There is none, or what was there before cannot be had any more.
        """
        if not self._history.back(self._serves, self._variants.default):
            raise PreconditionError(
                "there is nothing to go back to: traffic was not changed, or the variants that "
                "took it before do not serve; use SetTraffic."
            )
        return self._direct()

    async def close(self) -> None:
        """Begin nothing any more, and stop what is being loaded."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _change(self, traffic: Traffic) -> Traffic:
        self._history.change(traffic)
        return self._direct()

    def _direct(self) -> Traffic:
        """Have everybody follow what traffic is now."""
        traffic = self._history.now
        self._variants.direct(traffic)
        self._reweigh()
        shadow = traffic.shadow
        _log.info(
            "traffic",
            weights=dict(traffic.weights),
            shadow=shadow and shadow.candidate,
            fraction=shadow and shadow.fraction,
        )
        return traffic

    def _reweigh(self) -> None:
        for name in self._variants.names():
            self._post(Reweigh(name, engine_share(self._variants, name)))

    def _check_load(self, name: str, chain: Sequence[Any] | None) -> Sequence[Any]:
        """The chain to load, if anything may be loaded under this name."""
        self._refuse_when_closed()
        if not re.fullmatch(NAME_PATTERN, name) or name == ROUTED:
            raise InvalidRequestError(
                "name", f"{name[:64]!r} is no name of a variant", f"match {NAME_PATTERN}"
            )
        view = self._variants.get(name)
        if name in self._busy or (view is not None and view.state not in _GONE):
            raise AlreadyExistsError(
                f"name: there is a variant {name!r} already; unload it first, or choose another."
            )
        if len({*self._variants.names(), *self._busy, name}) > _MOST_VARIANTS:
            raise PreconditionError(
                f"there are {_MOST_VARIANTS} variants, as many as may be; load under the name of "
                "one that does not serve."
            )
        if chain is None:
            if name not in self._chains:
                raise InvalidRequestError("chain_json", "is not set", "send a JSON array of stages")
            return self._chains[name]
        self._allowed.check(chain)
        return chain

    def _check_drafts(self, name: str, drafts: Drafts) -> None:
        """Refuse what would be refused in a config, and a drafter that does not serve."""
        problem = problem_of_drafts(name, drafts, self._variants.names(), self._drafts)
        if problem is not None:
            raise _wrong("speculation_json", [problem])
        if drafts.variant and not self.is_ready(drafts.variant):
            state = self._known(drafts.variant).state.value
            raise PreconditionError(
                f"speculation_json: variant {drafts.variant!r} does not serve: it is {state}; "
                "load it first."
            )

    async def _load(
        self,
        name: str,
        chain: Sequence[Any],
        budget: BudgetSection | None,
        speculation: Choice | None,
        *,
        begun: asyncio.Future[None],
        changed: asyncio.Event,
    ) -> None:
        """All of a load; ``begun`` tells whether it came to be one."""

        def heard(view: VariantView) -> None:
            if view.name == name:
                changed.set()

        self._variants.watch(heard)
        try:
            planned = await self._planned(name, chain)
            if speculation is not None and speculation.drafts is not None:
                await self._check_tokens(name, speculation.drafts, planned)
            self._make_room(name)
            self._chains[name] = chain
            if budget is not None or name not in self._budgets:
                self._budgets[name] = self._budget(budget)
            if speculation is not None:
                self._drafts[name] = speculation.drafts
            begun.set_result(None)
            drafts = self._drafts.get(name)
            await self._loading.bring_up(name, planned, self._budgets[name], drafts)
        except RequestError as error:
            begun.set_exception(error)
        finally:
            if not begun.done():  # the server stops, or a bug, which the task's own end tells
                begun.set_exception(UnavailableError("the server is stopping."))
            self._variants.unwatch(heard)
            self._busy.discard(name)
            changed.set()

    async def _planned(self, name: str, chain: Sequence[Any]) -> PlannedVariant:
        """Judge a chain."""
        try:
            planned = await self._plan(name, chain)
        except OptimizerError as error:
            raise UnavailableError(f"the chain could not be judged: {error}") from error
        if not isinstance(planned, PlannedVariant):
            raise _wrong("chain_json", planned)
        return planned

    async def _check_tokens(self, name: str, drafts: Drafts, planned: PlannedVariant) -> None:
        """Refuse a drafter of other tokens before anything is loaded, where that is known."""
        if drafts.variant and not await self._loading.may_draft(drafts.variant, planned):
            path = f"variants.{name}.speculation.variant"
            error = FieldError(path=path, message=OTHER_TOKENS, remedy=OTHER_TOKENS_REMEDY)
            raise _wrong("speculation_json", [error])

    def _make_room(self, name: str) -> None:
        """Let there be a variant of which nothing is known yet."""
        if self._variants.get(name) is None:
            self._variants.add(name)
            self._added(name)
            self._reweigh()  # shares are relative to how many there are
        self._variants.change(name, state=VariantState.PENDING, **dict.fromkeys(_OF_ANOTHER))

    async def _unload(self, name: str) -> None:
        try:
            self._history.forget(name, self._variants.default)
            await self._loading.take_down(name)
        finally:
            self._busy.discard(name)

    async def _views(self, name: str, changed: asyncio.Event) -> AsyncGenerator[VariantView]:
        shown: VariantView | None = None
        while True:
            view = self._known(name)
            ended = name not in self._busy or _serves_unmeasured(view)
            # Who has heard the end may ask for the next thing at once: the work ends before.
            if view is not shown and (ended or view.state not in _SETTLED):
                shown = view
                yield view
            if ended:
                return
            await changed.wait()
            changed.clear()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _known(self, name: str) -> VariantView:
        view = self._variants.get(name)
        if view is None:
            known = ", ".join(self._variants.names())
            raise UnknownVariantError(f"variant: {name[:64]!r} is unknown; use one of: {known}.")
        return view

    def _require_ready(self, name: str) -> VariantView:
        view = self._known(name)
        if view.state is not VariantState.READY:
            raise PreconditionError(
                f"variant {name!r} does not serve: it is {view.state.value}; load it first."
            )
        return view

    def _serves(self, name: str) -> bool:
        view = self._variants.get(name)
        return view is not None and view.state is VariantState.READY

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise UnavailableError("the server is stopping.")


def _serves_unmeasured(view: VariantView) -> bool:
    """Whether it is measured while it serves, which may take long."""
    is_unverified = view.budget is not None and view.budget.state is BudgetState.UNVERIFIED
    return view.state is VariantState.READY and (is_unverified or view.is_unmeasured)


def _wrong(field: str, errors: Sequence[FieldError]) -> InvalidRequestError:
    """All that is wrong with a field, in one sentence."""
    said = " ".join(told(error) for error in errors)
    return InvalidRequestError(field, said.rstrip(".") or "is not valid", "correct it")
