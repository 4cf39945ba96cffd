"""What a build without a server asks of the optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artifacts.protocol import BuildRequest, PlannedVariant, PlanResponse
from server.building import build_variants
from server.config.fields import Config
from server.errors import OptimizerError
from server.planning import Planned

REMOTE = "s3://artifacts/demo"


class Refusing:
    """An optimizer that keeps what it is asked, and builds nothing."""

    def __init__(self) -> None:
        self.asked: list[BuildRequest] = []

    async def build(self, request: BuildRequest, *_: Any, **__: Any) -> Any:
        self.asked.append(request)
        raise OptimizerError("no")


@pytest.mark.parametrize("remote", [None, REMOTE])
@pytest.mark.parametrize("publish", [False, True])
async def test_only_who_says_so_publishes(
    tmp_path: Path, remote: str | None, *, publish: bool
) -> None:
    """Comparing is asked by people who may have no right to write to the object store."""
    config = Config(model="demo", variants={"int8": []}, store=str(tmp_path), remote=remote)
    planned = Planned(
        config, PlanResponse(variants={"int8": PlannedVariant(recipe="a" * 64, chain=())})
    )
    optimizer = Refusing()
    await build_variants(planned, optimizer, publish=publish)  # type: ignore[arg-type]
    (request,) = optimizer.asked
    assert request.remote == remote
    assert request.publish is (publish and remote is not None)
