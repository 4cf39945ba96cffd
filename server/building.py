"""Building the variants of a config into the store, serving nothing.

Owns how the lifecycle is run without an engine. Knows nothing of who wants the artifacts, or of
what is shown of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from artifacts import machine
from artifacts.store import Store
from server.lifecycle import Lifecycle
from server.progress import ProgressBars
from server.variants import Variants

if TYPE_CHECKING:
    from artifacts.manifest import Manifest
    from server.optimizer import Optimizer
    from server.planning import Planned


async def build_variants(
    planned: Planned, optimizer: Optimizer, *, publish: bool = False
) -> Variants:
    """Bring every variant's artifact into the store; progress is drawn on a terminal.

    Args:
        planned: What is wanted.
        optimizer: Who builds.
        publish: Each is to be in the config's object store as well, if it names one.

    Returns:
        The variants: ready, or failed with the reason.
    """
    config = planned.config
    if publish and config.remote is not None:
        planned = planned.unsettled()  # what is here may be missing there
    variants = Variants(tuple(config.variants), config.traffic)
    threads = machine.usable_cores()
    with ProgressBars() as bars:
        variants.watch(bars.show)
        await Lifecycle(
            variants=variants,
            planned=planned.response.variants,
            request=lambda name, spec: planned.build_request(
                name, spec, threads=threads, publish=publish
            ),
            optimizer=optimizer,
            store=Store(planned.store),
            load=None,
            post=lambda _: None,
            record=_Unrecorded(),
            step_tokens=config.engine.step_tokens,
            budgets=planned.budgets,
        ).run()
    return variants


class _Unrecorded:
    """Nobody scrapes a build."""

    def took(self, phase: str, seconds: float, variant: str = "") -> None:
        """See ``StartupRecord``."""

    def describe(self, variant: str, artifact: str, manifest: Manifest) -> None:
        """See ``StartupRecord``."""
