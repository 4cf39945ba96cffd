"""``inference-unlimited bench``: load on a running server, and how it bears it."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.remote import Ca, Target, Token, checked_target, failures, metadata_of
from server.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from server.bench.progress import Progress
    from server.bench.run import Load, Run
    from server.bench.summary import Objective

_SECONDS = 30.0
_USERS = 8


def _finite(value: float | None) -> float | None:
    """Bounds let numbers through that are none, and a run of ``nan`` seconds would not end."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value


def _bound(text: str) -> Any:
    return typer.Option(min=0, callback=_finite, help=text)


def bench(
    *,
    target: Target = "localhost:50051",
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=100_000,
            callback=_finite,
            help="Requests per second at random (Poisson) moments; without it, a closed loop.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=10_000, help=f"Users of a closed loop; {_USERS}.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=86_400,
            callback=_finite,
            help=f"How long requests are sent; {_SECONDS:g} unless --requests is given.",
        ),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, max=10_000_000, help="How many are sent at most.")
    ] = None,
    warm_up: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Requests before, which no figure counts.")
    ] = 0,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask this variant; several are asked in turn. Routed traffic by default."
        ),
    ] = None,
    prompt_tokens: Annotated[
        str, typer.Option(help="Length of prompts: N, uniform:A:B, normal:M:D, lognormal:M:S.")
    ] = "uniform:16:128",
    output_tokens: Annotated[
        str, typer.Option(help="Length of answers, in the same notation.")
    ] = "uniform:8:64",
    shared_prefix: Annotated[
        int,
        typer.Option(min=0, max=1_000_000, help="Tokens in front with which all prompts begin."),
    ] = 0,
    temperature: Annotated[
        float, typer.Option(min=0, max=100, callback=_finite, help="Of sampling.")
    ] = 0.0,
    cancel_rate: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=_finite, help="Share of requests that leave before the end."
        ),
    ] = 0.0,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=86_400,
            callback=_finite,
            help="Deadline of each request, in seconds from when it is due.",
        ),
    ] = 600.0,
    slo_first_token: Annotated[
        float | None, _bound("Good requests have a token within these seconds.")
    ] = None,
    slo_inter_token: Annotated[
        float | None, _bound("... and these seconds per further token on average.")
    ] = None,
    slo_duration: Annotated[float | None, _bound("... and end within these seconds.")] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text that prompts are cut from.", exists=True, dir_okay=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=(1 << 63) - 1, help="Of all draws; the run tells the drawn one."),
    ] = None,
    connections: Annotated[
        int, typer.Option(min=1, max=1000, help="Connections that requests are spread over.")
    ] = 4,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures as JSON instead of tables.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write all figures to this JSON file, too.", dir_okay=False),
    ] = None,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Send requests to a running server and report latencies, throughput and goodput.

    In an open loop (`--rate`) requests come whether or not earlier ones are served, and a wait is
    counted from when the request was due. Ctrl-C ends the run and shows what came until then.
    Exit codes: 0 measured, 1 no request was answered, 2 wrong usage, 3 no server answers, 130
    interrupted.
    """
    from server.bench.arrivals import Plan
    from server.bench.lengths import parse_lengths
    from server.bench.run import Load
    from server.bench.session import TEXT, open_run
    from server.bench.summary import Objective
    from server.errors import ServerError

    checked_target(target)
    if rate is not None and concurrency is not None:
        raise typer.BadParameter(
            "an open loop has no fixed number of users; give --rate or --concurrency, not both.",
            param_hint="--concurrency",
        )
    if out is not None and not out.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {out.parent}.", param_hint="--out")
    if seconds is None and requests is None:
        seconds = _SECONDS
    if seed is None:  # a run that repeats another's prompts would find them in the server's cache
        seed = secrets.randbelow(1 << 31)
    try:
        load = Load(
            Plan(rate, concurrency or _USERS, seconds, requests, seed),
            parse_lengths(prompt_tokens, "--prompt-tokens"),
            parse_lengths(output_tokens, "--output-tokens"),
            variants=tuple(variant or ("",)),
            cancel_rate=cancel_rate,
            shared_prefix=shared_prefix,
            timeout_s=timeout,
            temperature=temperature,
        )
    except ServerError as error:
        raise typer.BadParameter(str(error)) from None
    content = _content(text or TEXT)
    objective = Objective(slo_first_token, slo_inter_token, slo_duration)

    def opened(progress: Progress) -> AbstractAsyncContextManager[Run]:
        return open_run(
            target,
            content,
            load,
            connections=connections,
            ca=ca,
            metadata=metadata_of(token),
            ended=progress.ended,
        )

    with failures():
        report = asyncio.run(_report(opened, load, objective, warm_up))
    if report is None:
        typer.echo("error: interrupted before anything was measured.", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED)
    _tell({"target": target, **report}, out, as_json=as_json)


def _tell(report: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    """Print and write the figures, then end with the exit code that they mean."""
    from rich.console import Console

    from server.bench.attempt import OK
    from server.bench.tables import show, warnings

    written = json.dumps(report, indent=1, allow_nan=False)
    if out is not None:
        out.write_text(written + "\n", encoding="utf-8")
    if as_json:
        typer.echo(written)
    else:
        show(report, Console())
    for line in warnings(report):
        typer.echo(f"warning: {line}", err=True)
    if report["interrupted"]:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if not report["statuses"].get(OK):
        raise typer.Exit(ExitCode.FAILURE)


def _content(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(
            f"{path} cannot be read as UTF-8 ({error}).", param_hint="--text"
        ) from None
    if not content.strip():
        raise typer.BadParameter(f"{path} holds no text.", param_hint="--text")
    return content


async def _report(
    opened: Callable[[Progress], AbstractAsyncContextManager[Run]],
    load: Load,
    objective: Objective,
    warm_up: int,
) -> dict[str, Any] | None:
    """Run, also where a signal ends it early; None when nothing was measured by then."""
    from server.bench.progress import Progress
    from server.bench.summary import summarize

    begun: list[Run] = []
    created = datetime.now(UTC).isoformat(timespec="seconds")

    async def work() -> None:
        with Progress(load.plan) as progress:
            async with opened(progress) as run:
                await run.warm_up(warm_up)
                progress.begin(run)
                begun.append(run)
                await run.measure()

    working = asyncio.ensure_future(work())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, working.cancel)
    await asyncio.wait([working])
    if not working.cancelled():
        working.result()
    if not begun:
        return None
    return {
        "created": created,
        "interrupted": working.cancelled(),
        "load": load.described() | {"warm_up": warm_up},
        **summarize(begun[0].record(), objective),
    }
