"""``inference-unlimited generate``: one completion, streamed to the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.remote import Ca, Target, Token, connected

if TYPE_CHECKING:
    from protos import inference_pb2 as pb

# What a terminal would act on instead of showing; newline and tab are text.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
del _CONTROL[ord("\n")], _CONTROL[ord("\t")]

_UINT32, _UINT64 = 2**32 - 1, 2**64 - 1


def generate(
    *,
    prompt: Annotated[str, typer.Option(help="The text to continue; - reads it from stdin.")],
    target: Target = "localhost:50051",
    token: Token = None,
    ca: Ca = None,
    variant: Annotated[
        str, typer.Option(help="Which variant answers; by default the routed or the first one.")
    ] = "",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=_UINT32, help="Tokens at most.")
    ] = None,
    min_tokens: Annotated[
        int | None, typer.Option(min=0, max=_UINT32, help="Tokens at least.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest token.")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=0, max=_UINT32, help="Choose among this many tokens; 0 is all."),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among the likeliest of this probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Choose among those this close to the likeliest.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=_UINT64, help="The same seed, the same text.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given repeatedly.")
    ] = None,
    routing_key: Annotated[str, typer.Option(help="The same key reaches the same variant.")] = "",
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds at most.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end instead of text.")
    ] = False,
) -> None:
    """Continue a prompt.

    Exit codes: 0 done, 1 the server refused, 2 wrong usage, 3 no server answers.
    """
    from protos import inference_pb2 as pb

    chosen = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
    }
    try:
        request = pb.GenerateRequest(
            variant=variant,
            text=sys.stdin.read() if prompt == "-" else prompt,
            sampling=pb.SamplingParameters(stop=stop or (), **_set(chosen)),
            routing_key=routing_key,
        )
    except UnicodeError as error:  # bytes of the command line or of standard input
        raise typer.BadParameter(f"what is given is not UTF-8 ({error}).") from error
    with connected(target, token, ca) as client:
        begun_s = time.monotonic()
        responses = client.generate(request, timeout_s=timeout)
        if as_json:
            answer = _gather(responses, begun_s)
            typer.echo(json.dumps(answer, ensure_ascii=False))
        else:
            _show(responses, begun_s)


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _show(responses: Iterable[pb.GenerateResponse], begun_s: float) -> None:
    """Write text as it comes, and a line of figures behind it when someone watches."""
    terminal = sys.stdout.isatty()
    for response in responses:
        text = response.text
        sys.stdout.write(text.translate(_CONTROL) if terminal else text)
        sys.stdout.flush()
        if response.HasField("finish"):
            sys.stdout.write("\n")
            if sys.stderr.isatty():
                typer.secho(_figures(response.finish, begun_s), err=True, dim=True)


def _figures(finish: pb.Finish, begun_s: float) -> str:
    tokens = finish.usage.completion_tokens
    figures = f"{finish.variant}: {tokens} tokens in {time.monotonic() - begun_s:.2f} s"
    if tokens > 1 and finish.timings.decode_seconds > 0:
        figures += f", {(tokens - 1) / finish.timings.decode_seconds:.1f} tokens/s"
    return f"{figures}, {_reason(finish)}, seed {finish.seed}"


def _gather(responses: Iterable[pb.GenerateResponse], begun_s: float) -> dict[str, Any]:
    """The whole answer as one object."""
    from google.protobuf.json_format import MessageToDict

    text = ""
    token_ids: list[int] = []
    first_s: float | None = None
    answer: dict[str, Any] = {}
    for response in responses:
        if first_s is None and response.token_ids:
            first_s = time.monotonic() - begun_s
        text += response.text
        token_ids.extend(response.token_ids)
        if not response.HasField("finish"):
            continue
        finish = response.finish
        timings = MessageToDict(
            finish.timings,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        usage = MessageToDict(
            finish.usage,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        answer = {
            "text": text,
            "token_ids": token_ids,
            "finish_reason": _reason(finish),
            "variant": finish.variant,
            "artifact": finish.artifact,
            "seed": finish.seed,
            "usage": usage,
            # As the server measured them, then as seen from here.
            "timings": timings
            | {
                "first_token_seconds": first_s,
                "total_seconds": time.monotonic() - begun_s,
            },
        }
        stopped_by = finish.WhichOneof("stopped_by")
        if stopped_by is not None:
            answer[stopped_by] = getattr(finish, stopped_by)
    return answer


def _reason(finish: pb.Finish) -> str:
    """``stop`` or ``length``."""
    from protos import inference_pb2 as pb

    return pb.FinishReason.Name(finish.reason).removeprefix("FINISH_REASON_").lower()
