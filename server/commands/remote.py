"""What the commands share that talk to a running server: the target, and telling failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from server.exit_codes import ExitCode

if TYPE_CHECKING:
    from server.client import Client

Target = Annotated[
    str,
    typer.Option(
        "--target",
        help="Where the server listens for gRPC, as HOST:PORT.",
        envvar="INFERENCE_UNLIMITED_TARGET",
    ),
]


@contextmanager
def connected(target: str) -> Iterator[Client]:
    """A client of the target; failures end the command with their message and exit code."""
    from server.client import RefusedError, UnreachableError, connect

    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        raise typer.BadParameter(
            f"{target!r} is not HOST:PORT; try localhost:50051.", param_hint="--target"
        )
    try:
        with connect(target) as client:
            yield client
    except RefusedError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(ExitCode.FAILURE) from None
    except UnreachableError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(ExitCode.UNREACHABLE) from None
