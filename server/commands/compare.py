"""``inference-unlimited compare``: what each variant of a config gains and costs, as a report."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from server.commands.options import ModelOption, config_reader, failures
from server.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from server.budget import Budget
    from server.catalog import VariantView
    from server.comparison.report import Report
    from server.config.fields import Config

_LIBRARIES = ("scipy", "plotly", "psutil")


def compare(
    config: Annotated[Path, typer.Argument(help="YAML file that names model and variants.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for report.json, report.md and report.html.")
    ],
    model: ModelOption = None,
    variants: Annotated[
        str | None,
        typer.Option("--variants", help="Names parted by commas; without it, all are compared."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            min=1,
            max=1000,
            help="Turns of each variant; intervals need 3 [default: 5, quick: 3].",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds per turn: for large differences only.")
    ] = False,
) -> None:
    """Build the variants, measure each by itself in turns, and tell what each gains and costs.

    Ctrl-C keeps the rounds that are done: the report is then marked as incomplete. Exit codes: 0
    reported, 1 something was not built or measured, or interrupted, 2 config error.
    """
    import asyncio

    # Servers are other programs: gRPC need not get ready for its own life in one.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    _require_libraries()
    _make_folder(out)
    names = None if variants is None else [name.strip() for name in variants.split(",")]
    source, read = config_reader(config, model, {})
    with failures():
        try:
            report, chosen = asyncio.run(_compare(source, read, names, rounds=rounds, quick=quick))
        except (asyncio.CancelledError, KeyboardInterrupt):
            typer.echo("error: interrupted while building; nothing is reported.", err=True)
            raise typer.Exit(ExitCode.FAILURE) from None
    _finish(report, chosen, out)


async def _compare(
    source: str,
    read: Callable[[], Config],
    names: list[str] | None,
    *,
    rounds: int | None,
    quick: bool,
) -> tuple[Report, Config]:
    from artifacts import machine
    from server import logs
    from server.building import build_variants
    from server.comparison.comparison import QUICK_ROUNDS, ROUNDS, ComparisonRun
    from server.comparison.remeasuring import measured
    from server.comparison.selection import budgets, select
    from server.optimizer import ChildOptimizer
    from server.planning import plan

    logs.configure("info", "auto")  # until the config says otherwise
    _cancel_on_signals()
    limits: dict[str, Budget] = {}

    def selected() -> Config:
        whole = read()
        limits.update(budgets(whole))
        return select(whole, names, source)

    optimizer = ChildOptimizer()
    planned = await plan(selected, source, optimizer)
    config = planned.config.model_copy(
        update={"revision": planned.response.revision or planned.config.revision}
    )
    logs.configure(config.log.level, config.log.format)
    built = await build_variants(planned, optimizer)
    views = await measured(built.views, planned, optimizer, threads=machine.usable_cores())
    comparison = ComparisonRun(
        config=config,
        views=views,
        breaches=_breaches(views, limits),
        rounds=rounds or (QUICK_ROUNDS if quick else ROUNDS),
        quick=quick,
    )
    with _Turns() as turns:
        return await comparison.run(turns.begun), config


def _require_libraries() -> None:
    """End with a sentence when what `compare` needs beside serving is not installed."""
    from importlib.util import find_spec

    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        typer.echo(
            f"error: {', '.join(missing)} not installed, which comparing needs. "
            'Try: pip install "inference-unlimited[compare]".',
            err=True,
        )
        raise typer.Exit(ExitCode.FAILURE)


def _make_folder(out: Path) -> None:
    """Find out before the long work, not after it, whether the report can be written."""
    import tempfile

    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise typer.BadParameter(
            f"{out} cannot be written: {error.strerror}.", param_hint="--out"
        ) from None


def _cancel_on_signals() -> None:
    """Have the running task cancelled by what asks the process to stop; servers end with it."""
    import asyncio
    import signal

    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)


def _breaches(
    views: tuple[VariantView, ...], budgets: Mapping[str, Budget]
) -> dict[str, tuple[str, ...]]:
    from server.budget import told

    found = {}
    for view in views:
        budget, manifest = budgets.get(view.name), view.manifest
        if budget is not None and manifest is not None:
            breaches = budget.breaches(manifest.quality, manifest.size_bytes)
            found[view.name] = told(breaches, manifest)
    return found


def _finish(report: Report, config: Config, out: Path) -> None:
    """Write the report, keep what is worth keeping, and say where it is."""
    from artifacts.errors import StoreError
    from server.comparison.comparison import keep, write

    try:
        written = write(report, out)
    except OSError as error:
        typer.echo(f"error: {out} cannot be written: {error.strerror}.", err=True)
        raise typer.Exit(ExitCode.FAILURE) from None
    if not report.quick:
        try:
            keep(report, config)
        except StoreError as error:  # a read-only store serves all the same
            typer.echo(f"warning: figures are not kept for the server: {error}", err=True)
    for remark in report.remarks:
        typer.echo(remark)
    for name, found in report.findings.items():
        typer.echo(f"\n{name}")
        for mark, sentences in (("+", found.advantages), ("-", found.disadvantages)):
            for sentence in sentences:
                typer.echo(f"  {mark} {sentence}")
    typer.echo("\n" + "\n".join(str(path) for path in written))
    whole = report.complete and not report.failed and not any(v.failure for v in report.variants)
    raise typer.Exit(ExitCode.OK if whole else ExitCode.FAILURE)


class _Turns:
    """Tells which turn is on and how long the rest will take: a bar, or a line of the log."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} turns"),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("measuring", total=None, left="")
        self._begun_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begun(self, variant: str, number: int, count: int) -> None:
        """A turn starts."""
        import structlog

        from server.comparison.measures import duration

        left = ""
        if number:
            each_s = (time.monotonic() - self._begun_s) / number
            left = f"about {duration(each_s * (count - number))} left"
        self._progress.update(
            self._task, description=f"measuring {variant}", completed=number, total=count, left=left
        )
        if not self._progress.console.is_terminal:
            structlog.get_logger(__name__).info(
                "measuring", variant=variant, turn=f"{number + 1}/{count}", left=left or None
            )
