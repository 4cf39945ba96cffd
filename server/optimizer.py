"""The optimizer as the server sees it: a program of its own that plans, builds and judges.

Owns the questions, what each answer means, and how a missing one is told. Knows nothing of states
of variants, of what a stage does, or of how a process is watched (``server.child``).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from pydantic import ValidationError

from artifacts.manifest import Quality
from artifacts.protocol import (
    BuildEvent,
    BuildFailed,
    BuildRequest,
    Built,
    Judged,
    JudgeRequest,
    PlanRequest,
    PlanResponse,
    build_event,
)
from server.child import Child
from server.errors import OptimizerError

_MISSING = "No module named optimizers"  # what the interpreter says of a package that is not there
_INSTALL = 'Is it installed? Try: pip install "inference-unlimited[optimizer]".'


class Optimizer(Protocol):
    """What the server asks of the optimizer; a test may answer in its place."""

    async def plan(self, request: PlanRequest) -> PlanResponse:
        """Judge chains and name their recipes."""
        ...

    async def build(
        self, request: BuildRequest, observe: Callable[[BuildEvent], None], *, background: bool
    ) -> Built:
        """Build one variant into the store."""
        ...

    async def judge(
        self, request: JudgeRequest, observe: Callable[[BuildEvent], None], *, background: bool
    ) -> Quality:
        """Measure a stored artifact."""
        ...


class ChildOptimizer:
    """Runs ``python -m optimizers`` once per question.

    Args:
        command: The program; the default is this interpreter's ``optimizers`` package.
        plan_timeout_s: How long judging a config may take, a hub look-up included.
    """

    def __init__(
        self, command: tuple[str, ...] | None = None, *, plan_timeout_s: float = 120.0
    ) -> None:
        # -P: a folder that happens to be called `optimizers` in the working directory is not it.
        self._command = command or (sys.executable, "-P", "-m", "optimizers")
        self._plan_timeout_s = plan_timeout_s

    async def plan(self, request: PlanRequest) -> PlanResponse:
        """Judge chains and name their recipes.

        Raises:
            OptimizerError: The child gave no answer.
        """
        async with self._child("plan") as child:
            try:
                async with asyncio.timeout(self._plan_timeout_s):
                    answer = await child.ask(request.model_dump_json())
            except TimeoutError:
                raise OptimizerError(
                    f"The optimizer did not judge the config within {self._plan_timeout_s:g} s.",
                    remedy="Is the network slow? Set `offline: true` if the model is cached.",
                ) from None
            try:
                return PlanResponse.model_validate_json(answer)
            except ValidationError:
                ending = await child.ending()
                raise OptimizerError(
                    f"The optimizer could not judge the config; it {ending}",
                    remedy=_INSTALL if _MISSING in ending else "",
                ) from None

    async def build(
        self, request: BuildRequest, observe: Callable[[BuildEvent], None], *, background: bool
    ) -> Built:
        """Build one variant into the store.

        Args:
            request: What to build.
            observe: Told of every event as it comes.
            background: Others are being served: the child takes only idle processor time.

        Raises:
            OptimizerError: It ended without an artifact.
        """
        final = await self._final("build", request, observe, background=background)
        if not isinstance(final, Built):
            raise _not_understood("build", request.variant, final)
        return final

    async def judge(
        self, request: JudgeRequest, observe: Callable[[BuildEvent], None], *, background: bool
    ) -> Quality:
        """Measure a stored artifact; arguments as in ``build``.

        Raises:
            OptimizerError: It ended without figures.
        """
        final = await self._final("judge", request, observe, background=background)
        if not isinstance(final, Judged):
            raise _not_understood("judge", request.variant, final)
        return final.quality

    async def _final(
        self,
        act: str,
        request: BuildRequest | JudgeRequest,
        observe: Callable[[BuildEvent], None],
        *,
        background: bool,
    ) -> Built | Judged:
        """Have a child do it; gives the event that ends it well."""
        async with self._child(act, threads=request.threads, variant=request.variant) as child:
            if background:
                child.lower_priority()
            await child.tell(request.model_dump_json())
            async for line in child.lines():
                try:
                    event = build_event.validate_json(line)
                except ValidationError:
                    raise _not_understood(act, request.variant, line) from None
                observe(event)
                match event:
                    case Built() | Judged():
                        return event
                    case BuildFailed():
                        raise OptimizerError(
                            event.message, remedy=event.remedy, code=event.code, path=event.path
                        )
                    case _:
                        pass
            raise await child.died(act, request.variant)

    @contextlib.asynccontextmanager
    async def _child(
        self, act: str, *, threads: int | None = None, variant: str = ""
    ) -> AsyncIterator[Child]:
        child = await Child.start((*self._command, act), threads=threads, variant=variant)
        try:
            yield child
        finally:
            await child.end()


def _not_understood(act: str, variant: str, said: object) -> OptimizerError:
    return OptimizerError(
        f"The {act} of variant {variant!r} said something that is not understood: "
        f"{str(said)[:200]}.",
        remedy="Are the server and the optimizer of the same version?",
    )
