"""The command line: which commands there are. Each lies in ``server.commands``.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import typer

from server.commands.bench import bench
from server.commands.build import build
from server.commands.compare import compare
from server.commands.generate import generate
from server.commands.health import health
from server.commands.prune_store import prune_store
from server.commands.search import search
from server.commands.serve import serve
from server.commands.traffic import traffic_commands
from server.commands.variants import variants


def application() -> typer.Typer:
    """All commands."""
    app = typer.Typer(
        name="inference-unlimited",
        help="Serve optimized variants of one language model side by side, and compare them.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
    )
    app.command()(serve)
    app.command()(build)
    app.command()(search)
    app.command()(compare)
    app.command()(bench)
    app.command()(generate)
    app.command()(variants)
    app.command()(health)
    app.add_typer(traffic_commands(), name="traffic")
    app.command("prune-store")(prune_store)
    return app


def main() -> None:
    """Run the command that the process's arguments name."""
    application()()


if __name__ == "__main__":
    main()
