"""``inference-unlimited variants``: what a running server serves, side by side."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.remote import Ca, Target, Token, connected
from server.errors import of_variant

if TYPE_CHECKING:
    from protos import inference_pb2 as pb

_PIPED_WIDTH = 200


def variants(
    *,
    target: Target = "localhost:50051",
    token: Token = None,
    ca: Ca = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything that is known, as one JSON array.")
    ] = False,
) -> None:
    """Show the variants of a running server: state, size, quality and chain.

    Exit codes: 0 done, 1 the server refused, 2 wrong usage, 3 no server answers.
    """
    with connected(target, token, ca) as client:
        found = client.variants()
    if as_json:
        typer.echo(json.dumps([_as_dict(variant) for variant in found], ensure_ascii=False))
        return
    _show(found)


def _as_dict(variant: pb.Variant) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    shown: dict[str, Any] = MessageToDict(
        variant, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # As in the config and in the messages: without the enumeration's prefix, and not in quotes.
    shown["state"] = _state(variant)
    shown["chain"] = json.loads(shown.pop("chain_json") or "[]")
    if variant.HasField("budget"):
        shown["budget"]["state"] = _budget_state(variant)
    return shown


def _show(found: list[pb.Variant]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH  # nobody's window: do not fold
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("variant", "left"),
        ("state", "left"),
        ("size", "right"),
        ("KL", "right"),
        ("agreement", "right"),
        ("traffic", "right"),
        ("chain", "left"),
    ):
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for variant in found:
        quality = _quality(variant)
        cells = (
            variant.name + (" (default)" if variant.is_default else ""),
            _state(variant) + _progress(variant) + _standing(variant),
            f"{variant.size_bytes / 1e6:.1f} MB" if variant.size_bytes else "",
            "" if quality is None else f"{quality.kl_mean:.4f}",
            "" if quality is None else f"{quality.top1_agreement:.1%}",
            f"{variant.traffic_weight:g}" if variant.traffic_weight else "",
            _chain(variant),
        )
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    for variant in found:
        if variant.error:
            console.print(Text(of_variant(variant.name, variant.error), style="red"))
        elif variant.budget.notes:
            note = " ".join(variant.budget.notes)
            console.print(Text(of_variant(variant.name, note), style="yellow"))
        for line in variant.audit:
            console.print(Text(of_variant(variant.name, f"slow kernel: {line}"), style="yellow"))


def _state(variant: pb.Variant) -> str:
    from protos import inference_pb2 as pb

    return pb.VariantState.Name(variant.state).removeprefix("VARIANT_STATE_").lower()


def _budget_state(variant: pb.Variant) -> str:
    from protos import inference_pb2 as pb

    return pb.BudgetState.Name(variant.budget.state).removeprefix("BUDGET_STATE_").lower()


def _standing(variant: pb.Variant) -> str:
    """What is to be known of a variant that serves although not all is as configured."""
    if _state(variant) != "ready":
        return ""
    if left_out := variant.budget.rolled_back_stages:
        return f" (without the last {left_out} of its stages)"
    standing = {"exceeded": " (over budget)", "unverified": " (unverified)"}
    if (told := standing.get(_budget_state(variant))) is not None:
        return told
    is_measured = any(stage.HasField("quality") for stage in variant.lineage)
    return " (unmeasured)" if variant.lineage and not is_measured else ""


def _progress(variant: pb.Variant) -> str:
    progress = variant.progress
    if _state(variant) != "building" or not progress.stage:
        return ""
    return (
        f" {progress.stage} ({progress.stage_index + 1}/{progress.stage_count}, "
        f"{progress.fraction:.0%})"
    )


def _quality(variant: pb.Variant) -> pb.Quality | None:
    """The measures of the last stage, which are those of the artifact."""
    measured = [stage.quality for stage in variant.lineage if stage.HasField("quality")]
    return measured[-1] if measured else None


def _chain(variant: pb.Variant) -> str:
    """``prune(amount=0.3) → quantize(bits=8)``."""
    stages = json.loads(variant.chain_json or "[]")
    return " → ".join(
        f"{name}({', '.join(f'{key}={value}' for key, value in parameters.items())})"
        for stage in stages
        for name, parameters in stage.items()
    )
