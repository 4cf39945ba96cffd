"""``inference-unlimited prune-store``: free what no artifact needs any more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from server.commands.options import failures


def prune_store(
    *,
    store: Annotated[
        Path | None,
        typer.Option(help="The store's folder; by default the one that `serve` uses."),
    ] = None,
    older_than_days: Annotated[
        float,
        typer.Option(min=0, help="Keep what was used or written within this many days."),
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove what no artifact needs: results between stages, drafts and files without a manifest.

    Finished artifacts stay. Exit codes: 0 done, 1 the store cannot be used.
    """
    from artifacts.layout import default_root
    from artifacts.prune import prune
    from artifacts.store import Store

    with failures():
        root = store or default_root(os.environ)
        pruned = prune(Store(root), older_than_s=older_than_days * 86_400, dry_run=dry_run)
    for path in pruned.paths:
        typer.echo(path)
    verb = "would be freed" if dry_run else "freed"
    typer.echo(f"{pruned.size_bytes / 1e6:.1f} MB {verb} in {root}")
