"""What several commands share: arguments, where the demo lies, and how failures are told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.exit_codes import ExitCode

if TYPE_CHECKING:
    from server.config.fields import Config
    from server.planning import Planned

ConfigFile = Annotated[
    Path | None,
    typer.Argument(help="YAML file; without one, the embedded demo is used.", show_default=False),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Hub id, folder or `demo`, in place of the config's model."),
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Check the whole hash of each stored artifact first; build a damaged one again.",
    ),
]


def config_reader(
    path: Path | None, model: str | None, flags: Mapping[str, Any]
) -> tuple[str, Callable[[], Config]]:
    """Name of the config for messages, and what reads it."""
    from server.config.sources import Unset, load

    source = path or Path(str(files("demo"))) / "config.yaml"
    strong: dict[str, Any] = {**flags, "model": model}
    if path is None and model is not None:
        # The demo's texts say nothing about another model: it is measured on text of its own.
        strong["evaluation"] = Unset
    return str(source), lambda: load(source, environment=os.environ, flags=strong)


def verified(planned: Planned) -> Planned:
    """Check the whole hash of every stored artifact; a damaged one counts as not found.

    Nothing is removed: the build that follows drops it, once it holds the store's locks.

    Raises:
        StoreError: A file may not be read, or the disk fails.
    """
    from dataclasses import replace

    import structlog

    from artifacts.errors import CorruptArtifactError
    from artifacts.store import Store

    store = Store(planned.store)
    variants = dict(planned.response.variants)
    for name, variant in variants.items():
        if variant.artifact is None:
            continue
        try:
            store.open(variant.artifact, verify=True)
        except CorruptArtifactError as damage:
            structlog.get_logger(__name__).warning(
                "stored artifact is damaged; building it again",
                variant=name,
                artifact=variant.artifact,
                error=str(damage),
            )
            variants[name] = variant.model_copy(update={"artifact": None})
    return replace(planned, response=planned.response.model_copy(update={"variants": variants}))


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Tell expected failures in their own words and end with the right code."""
    from artifacts.errors import ArtifactError
    from server.config.errors import ConfigError
    from server.errors import ServerError

    try:
        yield
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(ExitCode.USAGE) from None
    except (ArtifactError, ServerError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(ExitCode.FAILURE) from None
