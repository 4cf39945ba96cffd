"""``inference-unlimited build``: make the artifacts of a config, and serve nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.options import ModelOption, VerifyOption, config_reader, failures, verified
from server.errors import of_variant
from server.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.catalog import VariantView
    from server.config.fields import Config
    from server.variants import Variants


def build(
    config: Annotated[Path, typer.Argument(help="YAML file that names model and variants.")],
    model: ModelOption = None,
    *,
    verify: VerifyOption = False,
) -> None:
    """Build every variant of a config into the store, and show what came of it.

    What the store already holds is not built again. Exit codes: 0 all are there, 1 at least one
    failed or is refused for its budget, 2 config error.
    """
    import asyncio

    source, read = config_reader(config, model, {})
    with failures():
        variants = asyncio.run(_build(source, read, verify=verify))
    _show(variants)
    failed = [view for view in variants.views if view.error is not None]
    for view in failed:
        typer.echo(f"error: {of_variant(view.name, view.error or '')}", err=True)
    raise typer.Exit(ExitCode.FAILURE if failed else ExitCode.OK)


async def _build(source: str, read: Callable[[], Config], *, verify: bool) -> Variants:
    import asyncio

    from server import logs
    from server.building import build_variants
    from server.optimizer import ChildOptimizer
    from server.planning import plan

    logs.configure("info", "auto")  # until the config says otherwise
    optimizer = ChildOptimizer()
    planned = await plan(read, source, optimizer)
    config = planned.config
    logs.configure(config.log.level, config.log.format)
    if verify:
        planned = await asyncio.to_thread(verified, planned)
    return await build_variants(planned, optimizer, publish=True)


def _show(variants: Variants) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("variant", "state", "artifact", "MB", "KL mean", "top-1 agreement", "budget")
    for view in variants.views:
        row = [view.name, "built" if view.error is None else "failed"]
        if view.manifest is not None:
            row += [(view.artifact or "")[:12], f"{view.manifest.size_bytes / 1e6:.2f}"]
            quality = view.manifest.quality
            row += (
                ["", ""]
                if quality is None
                else [f"{quality.kl_mean:.5f}", f"{quality.top1_agreement:.4f}"]
            )
            row += [_budget(view)]
        table.add_row(*row)
    Console().print(table)


def _budget(view: VariantView) -> str:
    if view.budget is None:
        return ""
    left_out = view.budget.rolled_back_stages
    return view.budget.state.value + (f", without the last {left_out}" if left_out else "")
