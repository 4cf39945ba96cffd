"""``inference-unlimited search``: find better variants than those that were written by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.options import ConfigFile, ModelOption, config_reader, failures
from server.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.config.fields import Config
    from server.search.campaign import Campaign, Outcome
    from server.search.preparation import Prepared


def search(
    config: ConfigFile = None,
    model: ModelOption = None,
    *,
    trials: Annotated[
        int | None, typer.Option(help="Chains to build and judge in all [default: 24].")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Begin no trial after so many minutes.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Journal file or database address, for machines that share a search "
            "[default: a journal in the store]."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Config to write; all trials go into the .json file beside it."),
    ] = Path("search.yaml"),
) -> None:
    """Search what a config leaves open for the best of quality, speed and memory.

    Without anything open, a built-in space is searched. What is stored is not done again, so a
    search that was stopped goes on where it was. Ctrl-C stops the running trial and reports what
    there is; a second one only ends. Exit codes: 0 searched, 1 failed, 2 config error.
    """
    import asyncio

    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # as in ``serve``
    flags = {
        "search.trials": trials,
        "search.minutes": minutes,
        "search.seed": seed,
        "search.storage": storage,
    }
    source, read = config_reader(config, model, flags)
    with failures():
        try:
            code = asyncio.run(_search(source, read, out))
        except (asyncio.CancelledError, KeyboardInterrupt):
            typer.echo("ended; what is finished is kept, start again to go on", err=True)
            code = ExitCode.FAILURE
    raise typer.Exit(code)


async def _search(source: str, read: Callable[[], Config], out: Path) -> ExitCode:
    from server import logs
    from server.optimizer import ChildOptimizer
    from server.search.preparation import prepare, study_name
    from server.search.report import check_out

    logs.configure("info", "auto")  # until the config says otherwise
    check_out(out)
    prepared = await prepare(read, source, ChildOptimizer())
    config = prepared.planned.config
    logs.configure(config.log.level, config.log.format)
    for warning in prepared.warnings:
        typer.echo(f"warning: {warning}", err=True)
    name = await study_name(prepared, source)
    outcome = await _run(prepared, name)
    return _report(prepared, outcome, out, name)


async def _run(prepared: Prepared, name: str) -> Outcome:
    from artifacts import machine
    from server.optimizer import ChildOptimizer
    from server.search.campaign import Campaign
    from server.search.display import Display
    from server.search.objectives import chosen
    from server.search.probing import ServerProber
    from server.search.storage import journal_in
    from server.search.study import Study

    settings = prepared.planned.config.search
    objectives = chosen(settings.objectives)
    storage = settings.storage or journal_in(prepared.planned.store, name)
    study = Study.open(storage, name, objectives, seed=settings.seed)
    if counted := study.counted():
        typer.echo(f"going on with {counted} finished trials of study {name}", err=True)
    with Display(objectives) as display:
        campaign = Campaign(
            prepared,
            study,
            ChildOptimizer(),
            ServerProber(),
            display,
            threads=machine.usable_cores(),
        )
        _stop_on_signals(campaign)
        return await campaign.run()


def _stop_on_signals(campaign: Campaign) -> None:
    """The first signal asks for the report, the second only ends."""
    import asyncio
    import signal

    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    heard = 0

    def hear() -> None:
        nonlocal heard
        heard += 1
        if heard == 1:
            typer.echo("stopping; once more to end without a report", err=True)
            campaign.stop()
        elif this is not None:
            this.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, hear)


def _report(prepared: Prepared, outcome: Outcome, out: Path, name: str) -> ExitCode:
    from rich.console import Console

    from server.search import report
    from server.search.chains import words
    from server.search.objectives import chosen
    from server.search.search import Ending

    planned, verdict = prepared.planned, outcome.verdict
    objectives = chosen(planned.config.search.objectives)
    json_path = report.json_beside(out)
    text = report.json_text(verdict, outcome.records, study=name, ending=outcome.ending.value)
    report.write(json_path, text)
    typer.echo(f"The search ended because {outcome.ending.value}.")
    if verdict is None:
        typer.echo(f"Nothing was measured; {json_path} tells why.")
        return ExitCode.OK if outcome.ending is Ending.STOPPED else ExitCode.FAILURE
    config = planned.config
    revision = planned.response.revision
    if revision is not None and not revision.startswith("sha256:"):
        config = config.model_copy(update={"revision": revision})
    report.write(out, report.config_text(config, verdict, objectives))
    Console().print(report.table(verdict, objectives))
    for one in verdict.contenders:
        if not one.is_known:
            typer.echo(f"{one.name}: {words(one.chain)}")
    for sentence in report.sentences(verdict, objectives):
        typer.echo(sentence)
    typer.echo(f"Serve them: inference-unlimited serve {out}   (all trials: {json_path})")
    return ExitCode.FAILURE if outcome.ending is Ending.FAILING else ExitCode.OK
