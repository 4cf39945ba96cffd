"""``inference-unlimited traffic``: which variants a running server has, and where traffic goes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.remote import Ca, Target, Token, connected
from server.exit_codes import ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from protos import admin_pb2 as pb
    from protos import inference_pb2 as api

_DEFAULT_TARGET = "localhost:50051"
_PIPED_WIDTH = 200
_LEAST_STEP = 0.1  # of a stage's progress, between two lines where nobody watches

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


def traffic_commands() -> typer.Typer:
    """All of them, as a group."""
    group = typer.Typer(
        help="Split, shadow and move a running server's traffic; load, compare and unload "
        "variants. Exit codes: 0 done, 1 the server refused, 2 wrong usage, 3 no server answers.",
        no_args_is_help=True,
    )
    for command in (show, promote, rollback, compare, load, unload):
        group.command()(command)
    group.command("set")(set_)
    return group


def show(
    *, target: Target = _DEFAULT_TARGET, token: Token = None, ca: Ca = None, as_json: AsJson = False
) -> None:
    """Show where requests that name no variant go, and who is judged on the answers."""
    with connected(target, token, ca) as client:
        _tell(client.traffic(), as_json=as_json)


def set_(
    weights: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=WEIGHT]...",
            help="Weight of each variant that takes part; none: the first variant takes all.",
        ),
    ] = None,
    *,
    shadow: Annotated[
        str, typer.Option(metavar="NAME", help="Who is judged on what others answer.")
    ] = "",
    fraction: Annotated[
        float, typer.Option(help="Of the answered requests that the shadow is judged on, 0..1.")
    ] = 1.0,
    target: Target = _DEFAULT_TARGET,
    token: Token = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Set the weights and the shadow, both as a whole: what is not given is none."""
    from protos import admin_pb2 as pb

    request = pb.SetTrafficRequest(weights=_weights(weights or []))
    if shadow:
        request.shadow.CopyFrom(pb.Shadow(candidate=shadow, fraction=fraction))
    with connected(target, token, ca) as client:
        _tell(client.set_traffic(request), as_json=as_json)


def promote(
    variant: Annotated[str, typer.Argument(help="Who takes all.")],
    *,
    target: Target = _DEFAULT_TARGET,
    token: Token = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Give one variant all routed traffic."""
    with connected(target, token, ca) as client:
        _tell(client.promote(variant), as_json=as_json)


def rollback(
    *, target: Target = _DEFAULT_TARGET, token: Token = None, ca: Ca = None, as_json: AsJson = False
) -> None:
    """Take the latest change of traffic back; call it again for the one before."""
    with connected(target, token, ca) as client:
        _tell(client.roll_back(), as_json=as_json)


def compare(
    candidate: Annotated[str, typer.Argument(help="Who is compared.")],
    baseline: Annotated[
        str, typer.Argument(help="With whom; by default the server's first variant.")
    ] = "",
    *,
    target: Target = _DEFAULT_TARGET,
    token: Token = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Compare two variants on the server's own traffic: the shadow's quality, the split's speed."""
    with connected(target, token, ca) as client:
        found = client.compare(baseline, candidate)
    if as_json:
        typer.echo(_json(found))
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    console.print(_comparison(found))
    for note in found.notes:
        console.print(note, markup=False)


def load(
    name: Annotated[str, typer.Argument(help="A new name, or that of one that does not serve.")],
    chain: Annotated[
        str,
        typer.Option(
            help="Its stages as a JSON array, @FILE with one, or - to read it from stdin; by "
            "default those that it had before."
        ),
    ] = "",
    *,
    budget: Annotated[
        str,
        typer.Option(help="What it may lose, as a JSON object or @FILE; default: the config's."),
    ] = "",
    speculation: Annotated[
        str,
        typer.Option(
            help="Where its drafted tokens come from, as a JSON object such as "
            '{"method": "prompt_lookup"}, or @FILE; null for nowhere; default: as before.'
        ),
    ] = "",
    target: Target = _DEFAULT_TARGET,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Build a variant (or find it in the store) and let it serve; traffic stays as it is.

    Leaving with Ctrl-C does not stop the server's work.
    """
    from protos import admin_pb2 as pb
    from protos import inference_pb2 as api

    request = pb.LoadVariantRequest(
        name=name,
        chain_json=_text(chain, "--chain"),
        budget_json=_text(budget, "--budget"),
        speculation_json=_text(speculation, "--speculation"),
    )
    with connected(target, token, ca) as client:
        last = _follow(name, client.load(request))
    if last is None or last.state != api.VARIANT_STATE_READY:
        said = last.error if last is not None and last.error else "the load has not ended."
        typer.echo(f"error: {name}: {said}", err=True)
        raise typer.Exit(ExitCode.FAILURE)
    megabytes = last.size_bytes / 1e6
    drafts = ""
    if last.HasField("speculation"):
        drafts = f", drafts by {last.speculation.variant or last.speculation.method}"
    typer.echo(f"{name} serves: {megabytes:.1f} MB, artifact {last.artifact[:12]}{drafts}")


def unload(
    variant: Annotated[str, typer.Argument(help="Who goes.")],
    *,
    target: Target = _DEFAULT_TARGET,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Unload a variant that takes no routed traffic, once its requests have ended."""
    with connected(target, token, ca) as client:
        client.unload(variant)
    typer.echo(f"{variant} is unloaded")


def _weights(given: Iterable[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for one in given:
        name, _, number = one.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            name = ""
        if not name or name in weights:
            raise typer.BadParameter(
                f"{one!r} is not NAME=WEIGHT, or its name comes twice; try int8=0.1.",
                param_hint="NAME=WEIGHT",
            )
        weights[name] = weight
    return weights


def _text(given: str, option: str) -> str:
    """A value as it was given, or what is read from where it points to."""
    import sys

    try:
        if given == "-":
            return sys.stdin.read()
        if given.startswith("@"):
            return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise typer.BadParameter(f"{given} cannot be read: {error}.", param_hint=option) from error
    return given


def _tell(found: pb.Traffic, *, as_json: bool) -> None:
    if as_json:
        typer.echo(_json(found))
        return
    whole = sum(found.weights.values())
    for name, weight in sorted(found.weights.items(), key=lambda item: (-item[1], item[0])):
        typer.echo(f"{name}  weight {weight:g}  {weight / whole:.1%}")
    if not found.weights:
        typer.echo("the first variant takes all")
    if found.HasField("shadow"):
        shadow = found.shadow
        typer.echo(f"{shadow.candidate}  is the shadow of {shadow.fraction:.1%} of the answers")


def _json(message: Any) -> str:
    from google.protobuf.json_format import MessageToDict

    shown = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(shown, ensure_ascii=False)


def _comparison(found: pb.CompareResponse) -> Table:
    from rich.table import Table

    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title=f"{found.candidate} against {found.baseline}",
        title_justify="left",
    )
    for title in ("figure", "value", "95 % interval", "from"):
        table.add_column(title)
    if found.HasField("shadow"):
        shadow = found.shadow
        source = f"{shadow.answers} answers, {shadow.positions} positions, in pairs"
        for title, estimate, form in (
            ("KL, at least (nats)", shadow.kl_lower_bound, ".5f"),
            ("top-1 agreement", shadow.top1_agreement, ".2%"),
            ("log-probability difference (nats)", shadow.logprob_difference, "+.4f"),
        ):
            table.add_row(title, *_cells(estimate, form), source)
    source = f"{found.candidate_requests} and {found.baseline_requests} requests, by prompt length"
    for measure, estimate in sorted(found.latency_ratios.items()):
        table.add_row(f"{_spoken(measure)}, ratio", *_cells(estimate, ".3f"), source)
    for who in ("baseline", "candidate"):
        if found.HasField(field := f"{who}_engine_seconds_per_token"):
            value = f"{getattr(found, field) * 1e3:.3f} ms"
            table.add_row(f"engine time per token, {getattr(found, who)}", value, "", "all work")
    return table


def _spoken(measure: str) -> str:
    return measure.removesuffix("_seconds").replace("_", " ")


def _cells(estimate: pb.Estimate, form: str) -> tuple[str, str]:
    value = format(estimate.value, form)
    if not estimate.HasField("low"):
        return value, "too few"
    return value, f"{format(estimate.low, form)} to {format(estimate.high, form)}"


def _follow(name: str, messages: Iterable[api.Variant]) -> api.Variant | None:
    """Show a load's progress as a bar, or as lines where nobody watches; gives the last state."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    task = bars.add_task(name, total=1.0)
    last: api.Variant | None = None
    said: tuple[str, int] | None = None
    if console.is_terminal:
        bars.start()
    try:
        for last in messages:
            words, done = _progress(last)
            bars.update(task, description=f"{name}: {words}", completed=done)
            saying = (words, int(done / _LEAST_STEP))
            if not console.is_terminal and saying != said:
                said = saying
                console.print(f"{name}: {words} {done:.0%}" if done else f"{name}: {words}")
    finally:
        bars.stop()
    return last


def _progress(variant: api.Variant) -> tuple[str, float]:
    """What is being done, and how much of it is done, 0..1."""
    from protos import inference_pb2 as api

    words = api.VariantState.Name(variant.state).removeprefix("VARIANT_STATE_").lower()
    if variant.state != api.VARIANT_STATE_BUILDING or not variant.progress.stage:
        return words, 1.0 if variant.state == api.VARIANT_STATE_READY else 0.0
    progress = variant.progress
    done = (progress.stage_index + progress.fraction) / max(progress.stage_count, 1)
    return f"{words}, {progress.stage}", done
