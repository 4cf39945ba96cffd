"""What may be changed while the server runs: which variants there are, and where traffic goes.

Owns the order of the checks, the history of traffic, and that one variant is loaded at a time. A
load that fails leaves traffic as it is. Lives on the event loop. Knows nothing of gRPC, or of how a
variant is built and attached.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from artifacts.protocol import FieldError, PlannedVariant
from server.budget import Budget
from server.catalog import VariantState, VariantView
from server.config.fields import NAME_PATTERN
from server.engine.messages import Command, Reweigh
from server.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    PreconditionError,
    UnavailableError,
    UnknownVariantError,
)
from server.routing import ROUTED
from server.traffic import History, Shadow, Traffic
from server.variants import Variants, engine_share

_MOST_VARIANTS = 64
_HEAVIEST = 1_000_000.0
_DEMO = "demo"
_MODEL_KEYS = frozenset({"model", "substitute"})
_GONE = frozenset({VariantState.FAILED, VariantState.UNLOADED})
_SETTLED = frozenset({VariantState.READY, *_GONE})


class Loading(Protocol):
    """Who brings variants up and takes them down (the lifecycle)."""

    async def bring_up(self, name: str, planned: PlannedVariant, budget: Budget | None) -> None:
        """Bring one up; its view tells what came of it."""
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


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a chain that comes from outside may name.

    Attributes:
        models: Hub ids.
        roots: Folders below which models and files may lie.
    """

    models: frozenset[str] = frozenset()
    roots: tuple[Path, ...] = ()

    def permits(self, name: str) -> bool:
        """Whether a model or a file may be named."""
        if name in self.models or name == _DEMO:
            return True
        path = Path(name).expanduser().resolve()
        return any(path.is_relative_to(root.resolve()) for root in self.roots)


class Operations:
    """One server's operations.

    Args:
        variants: What is known of them.
        loading: Brings them up and down.
        plan: Judges chains.
        post: Hands commands to the engine.
        allowed: What chains may name.
        chains: Of the config's variants, as they were read.
        budgets: Of the config's variants.
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
        added: Callable[[str], None],
    ) -> None:
        self._variants = variants
        self._loading = loading
        self._plan = plan
        self._post = post
        self._allowed = allowed
        self._chains = dict(chains)
        self._budgets = dict(budgets)
        self._added = added
        self._history = History(Traffic(dict(variants.traffic)))
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def load(
        self, name: str, chain: Sequence[Any] | None, budget: Budget | None
    ) -> AsyncGenerator[VariantView]:
        """Load a variant; gives its view whenever it changes, until it is ready or has failed.

        Args:
            name: A new one, or that of a variant that does not serve.
            chain: Its stages; None for those that it had.
            budget: What it may lose; None for what it had.

        Raises:
            RequestError: It is not even begun.
        """
        chain = self._check_load(name, chain)
        self._busy.add(name)
        try:
            planned = await self._planned(name, chain)
        except BaseException:
            self._busy.discard(name)
            raise
        self._chains[name] = chain
        if budget is not None:
            self._budgets[name] = budget
        changed = asyncio.Event()
        # Who leaves the stream does not stop the work.
        self._start(self._load(name, planned, changed))
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
        view = self._known(name)
        if name in self._busy:
            raise PreconditionError(f"variant {name!r} is being loaded or unloaded; wait for it.")
        if view.state is not VariantState.READY:
            raise PreconditionError(f"variant {name!r} does not serve: it is {view.state.value}.")
        takes_all = not self._variants.traffic and name == self._variants.default
        shadow = self._variants.shadow
        if takes_all or self._variants.traffic.get(name, 0.0) > 0:
            raise PreconditionError(
                f"variant {name!r} takes routed traffic; direct it elsewhere with SetTraffic or "
                "Promote first."
            )
        if shadow is not None and shadow.candidate == name:
            raise PreconditionError(
                f"variant {name!r} is the shadow; end it with SetTraffic first."
            )
        self._busy.add(name)
        try:
            self._history.forget(name)
            # Also when its caller leaves: half-unloaded is nothing.
            task = self._start(self._loading.take_down(name))
            await asyncio.shield(task)
        finally:
            self._busy.discard(name)

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
            self._require_ready(name) if weight > 0 else self._known(name)
        if weights and not any(weight > 0 for weight in weights.values()):
            raise InvalidRequestError("weights", "are all 0", "give one variant a weight above 0")
        if shadow is not None:
            self._require_ready(shadow.candidate)
            if not 0 < shadow.fraction <= 1:
                problem = f"{shadow.fraction:g} is out of bounds"
                raise InvalidRequestError("shadow.fraction", problem, "use a value in (0, 1]")
        return self._direct(Traffic(dict(weights), shadow), remember=True)

    def promote(self, name: str) -> Traffic:
        """Give one variant all routed traffic.

        Raises:
            RequestError: It is unknown, or does not serve.
        """
        self._require_ready(name)
        return self._direct(self._history.now.promoted(name), remember=True)

    def roll_back(self) -> Traffic:
        """Take the latest change of traffic back.

        Raises:
            RequestError: There is none, or what was there before cannot be had any more.
        """
        before = self._history.back()
        if before is None:
            raise PreconditionError("traffic was not changed, so there is nothing to take back.")
        return self._direct(before, remember=False)

    async def close(self) -> None:
        """Begin nothing any more, and stop what is being loaded."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _direct(self, traffic: Traffic, *, remember: bool) -> Traffic:
        if remember:
            self._history.change(traffic)
        else:
            self._history.now = traffic
        self._variants.direct(traffic)
        for name in self._variants.names():
            self._post(Reweigh(name, engine_share(self._variants, name)))
        return traffic

    def _check_load(self, name: str, chain: Sequence[Any] | None) -> Sequence[Any]:
        """The chain to load, if anything may be loaded under this name."""
        self._refuse_when_closed()
        if not re.match(NAME_PATTERN, name) or name == ROUTED:
            raise InvalidRequestError(
                "name", f"{name[:64]!r} is no name of a variant", f"match {NAME_PATTERN}"
            )
        view = self._variants.get(name)
        if name in self._busy or (view is not None and view.state not in _GONE):
            raise AlreadyExistsError(
                f"name: there is a variant {name!r} already; unload it first, or choose another."
            )
        if view is None and len(self._variants.names()) >= _MOST_VARIANTS:
            raise PreconditionError(f"there are {_MOST_VARIANTS} variants, as many as may be.")
        if chain is None:
            if name not in self._chains:
                raise InvalidRequestError("chain_json", "is not set", "send a JSON array of stages")
            return self._chains[name]
        for place in _places(chain):
            if not self._allowed.permits(place):
                raise InvalidRequestError(
                    "chain_json",
                    f"names {place[:128]!r}, which lies outside what may be named",
                    "add it to admin.models or admin.roots in the config",
                )
        return chain

    async def _planned(self, name: str, chain: Sequence[Any]) -> PlannedVariant:
        """Judge a chain, and make room for its variant."""
        planned = await self._plan(name, chain)
        if not isinstance(planned, PlannedVariant):
            raise _wrong_chain(planned)
        self._refuse_when_closed()
        if self._variants.get(name) is None:
            self._variants.add(name)
            self._added(name)
        of_another = ("error", "artifact", "manifest", "budget", "figures")
        self._variants.change(name, state=VariantState.PENDING, **dict.fromkeys(of_another))
        return planned

    async def _load(self, name: str, planned: PlannedVariant, changed: asyncio.Event) -> None:
        def heard(view: VariantView) -> None:
            if view.name == name:
                changed.set()

        self._variants.watch(heard)
        try:
            await self._loading.bring_up(name, planned, self._budgets.get(name))
        finally:
            self._variants.unwatch(heard)
            self._busy.discard(name)
            changed.set()

    async def _views(self, name: str, changed: asyncio.Event) -> AsyncGenerator[VariantView]:
        while True:
            view = self._known(name)
            yield view
            if view.state in _SETTLED or name not in self._busy:
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

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise UnavailableError("the server is stopping.")


def _wrong_chain(errors: Sequence[FieldError]) -> InvalidRequestError:
    """All that is wrong with a chain, in one sentence."""
    said = "; ".join(f"{error.path}: {error.message} {error.remedy}".strip() for error in errors)
    return InvalidRequestError("chain_json", said or "is not valid", "correct it")


def _places(value: Any, key: str = "") -> Iterator[str]:
    """Every text in a JSON value that names a model, or could name a folder or a file."""
    if isinstance(value, str):
        if key in _MODEL_KEYS or "/" in value or "\\" in value or value.startswith(("~", ".")):
            yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _places(one, str(name))
    elif isinstance(value, Sequence):
        for one in value:
            yield from _places(one, key)
