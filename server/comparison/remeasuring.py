"""Quality that a report can rest on: measured anew where what the store has says too little.

Owns when that is: never measured, measured on another text or class of processor, or before
figures were kept by document. Knows nothing of how quality is measured.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from artifacts.isa import isa_class
from server.budget import Budget
from server.catalog import VariantView
from server.errors import OptimizerError
from server.figures import doubt
from server.optimizer import Optimizer
from server.planning import Planned, judge_request

_log = structlog.get_logger(__name__)
_LIMITED = Budget(kl_mean=1.0)  # whatever a limit on quality would make worthless


async def measured(
    views: tuple[VariantView, ...], planned: Planned, optimizer: Optimizer, *, threads: int
) -> tuple[VariantView, ...]:
    """The same variants; one that cannot be measured keeps the figures that it has.

    Args:
        views: As their build left them.
        planned: What they were built of.
        optimizer: Measures.
        threads: For measuring.
    """
    return tuple([await _measured(view, planned, optimizer, threads) for view in views])


async def _measured(
    view: VariantView, planned: Planned, optimizer: Optimizer, threads: int
) -> VariantView:
    manifest = view.manifest
    if manifest is None or view.artifact is None:
        return view
    chain = planned.response.variants[view.name]
    request = planned.build_request(view.name, chain, threads=threads)
    why = await doubt(_LIMITED, manifest.quality, request, isa_class())
    if why is None and manifest.quality is not None and not manifest.quality.by_document:
        why = "its figures are not kept by document"
    if why is None:
        return view
    _log.info("measuring quality", variant=view.name, reason=why)
    try:
        quality = await optimizer.judge(
            judge_request(request, view.artifact), lambda _: None, background=False
        )
    except OptimizerError as error:
        _log.warning("quality cannot be measured", variant=view.name, error=str(error))
        return view
    return replace(view, manifest=manifest.measured(quality))
