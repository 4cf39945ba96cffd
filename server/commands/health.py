"""``inference-unlimited health``: whether a running server, or a variant of it, serves."""

from __future__ import annotations

from typing import Annotated

import typer

from server.commands.remote import Ca, Target, Token, connected
from server.exit_codes import ExitCode


def health(
    variant: Annotated[
        str, typer.Argument(help="Name of a variant; without one, the server is asked about.")
    ] = "",
    *,
    target: Target = "localhost:50051",
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Ask a running server by grpc.health.v1 whether it serves, as a container's health check does.

    Exit codes: 0 it serves, 1 it does not, 2 wrong usage, 3 no server answers.
    """
    with connected(target, token, ca) as client:
        serves = client.serves(variant)
    typer.echo("serving" if serves else "not serving")
    if not serves:
        raise typer.Exit(ExitCode.FAILURE)
