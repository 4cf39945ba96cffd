"""What the commands share that talk to a running server: where it is, who asks, and failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        help="Bearer token; better in the environment than on a command line that others see.",
        envvar="INFERENCE_UNLIMITED_TOKEN",
        show_envvar=True,
    ),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        help="PEM file with who signed the server's certificate; with it, the connection is "
        "encrypted.",
        exists=True,
        dir_okay=False,
    ),
]


def checked_target(target: str) -> str:
    """Refuse a target that is none."""
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        raise typer.BadParameter(
            f"{target!r} is not HOST:PORT; try localhost:50051.", param_hint="--target"
        )
    return target


def metadata_of(token: str | None) -> tuple[tuple[str, str], ...]:
    """What is sent with each call to say who asks."""
    return () if token is None else (("authorization", f"Bearer {token}"),)


@contextmanager
def failures() -> Iterator[None]:
    """Failures end the command with their message and exit code."""
    from server.client import RefusedError, UnreachableError

    try:
        yield
    except RefusedError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(ExitCode.FAILURE) from None
    except UnreachableError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(ExitCode.UNREACHABLE) from None


@contextmanager
def connected(target: str, token: str | None = None, ca: Path | None = None) -> Iterator[Client]:
    """A client of the target; failures end the command with their message and exit code."""
    from server.client import connect

    checked_target(target)
    with failures(), connect(target, ca=ca, metadata=metadata_of(token)) as client:
        yield client
