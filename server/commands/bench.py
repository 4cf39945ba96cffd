"""``inference-unlimited bench``: load on a running server, and how it bears it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.remote import Ca, Target, Token, checked_target, failures, metadata_of
from server.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.bench.run import Load
    from server.bench.summary import Objective

_TEXT = Path(__file__).parents[1] / "bench" / "text.txt"


def bench(
    *,
    target: Target = "localhost:50051",
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=100_000,
            help="Requests per second at random (Poisson) moments; without it, a closed loop.",
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=10_000, help="Users of a closed loop.")
    ] = 8,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, max=86_400, help="How long requests are sent.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, max=10_000_000, help="How many are sent at most.")
    ] = None,
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
        int, typer.Option(min=0, max=1_000_000, help="Tokens that all prompts begin with.")
    ] = 0,
    cancel_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests that leave before the end.")
    ] = 0.0,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=86_400, help="Deadline of each request in seconds.")
    ] = 600.0,
    slo_first_token: Annotated[
        float | None, typer.Option(min=0, help="Good requests have a token within these seconds.")
    ] = None,
    slo_inter_token: Annotated[
        float | None,
        typer.Option(min=0, help="... and these seconds per further token on average."),
    ] = None,
    slo_duration: Annotated[
        float | None, typer.Option(min=0, help="... and end within these seconds.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text that prompts are cut from.", exists=True)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write all figures to this JSON file.")] = None,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Send requests to a running server and report latencies, throughput and goodput.

    In an open loop (`--rate`) requests come whether or not earlier ones are served, and a wait is
    counted from when the request was due. Exit codes: 0 measured, 1 failed, 3 no server answers.
    """
    from server.bench.arrivals import Plan
    from server.bench.lengths import parse_lengths
    from server.bench.run import Load
    from server.bench.summary import Objective
    from server.errors import ServerError

    checked_target(target)
    if seconds is None and requests is None:
        seconds = 30.0
    try:
        load = Load(
            Plan(rate, concurrency, seconds, requests, seed),
            tuple(variant or ()),
            parse_lengths(prompt_tokens, "--prompt-tokens"),
            parse_lengths(output_tokens, "--output-tokens"),
            cancel_rate,
            shared_prefix,
            timeout,
            seed=seed,
        )
        content = (text or _TEXT).read_text(encoding="utf-8")
    except (ServerError, OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(str(error)) from None
    objective = Objective(slo_first_token, slo_inter_token, slo_duration)
    with failures():
        report = asyncio.run(_run(target, content, load, objective, token=token, ca=ca))
    _show(report)
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not report["requests"]:
        raise typer.Exit(ExitCode.FAILURE)


async def _run(
    target: str,
    content: str,
    load: Load,
    objective: Objective,
    *,
    token: str | None,
    ca: Path | None,
) -> dict[str, Any]:
    import grpc

    from protos import inference_pb2 as pb
    from protos import inference_pb2_grpc as pb_grpc
    from server.bench.progress import Progress
    from server.bench.run import run
    from server.client import RefusedError, open_channel

    metadata = metadata_of(token)
    async with open_channel(target, ca) as channel:
        stub: Any = pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        request = pb.TokenizeRequest(
            variant=load.variants[0] if load.variants else "",
            text=content,
            add_special_tokens=False,
        )
        try:
            answer = await stub.Tokenize(request, timeout=60, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            code = error.code().name.lower()
            raise RefusedError(code, error.details() or "no details") from None
        with Progress(load.plan) as progress:
            return await run(
                stub,
                list(answer.token_ids),
                load,
                objective,
                metadata=metadata,
                ended=progress.ended,
            )


def _show(report: dict[str, Any]) -> None:
    """The figures as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None)
    for name in ("", "requests", "tokens/s", "goodput", "mean", "p50", "p90", "p95", "p99"):
        table.add_column(name, justify="left" if not name else "right")
    for name, figures in (("all", report), *report["variants"].items()):
        table.add_row(
            name,
            str(figures["requests"]),
            f"{figures['tokens_per_second']:.1f}",
            f"{figures['goodput_requests_per_second']:.2f}/s ({figures['goodput_share']:.0%})",
        )
        for label, key in (
            ("  to first token, ms", "time_to_first_token_seconds"),
            ("  between tokens, ms", "inter_token_latency_seconds"),
            ("  whole request, ms", "request_duration_seconds"),
            ("  in the queue, ms", "queue_seconds"),
        ):
            table.add_row(label, "", "", "", *_cells(figures[key]))
    console.print(table)
    statuses = ", ".join(f"{count} {name}" for name, count in report["statuses"].items())
    console.print(f"{report['requests_per_second']:.2f} answered requests/s; {statuses}")


def _cells(spread: dict[str, Any]) -> Sequence[str]:
    names = ("mean", "p50", "p90", "p95", "p99")
    return ["-" if spread[name] is None else f"{spread[name] * 1000:.1f}" for name in names]
