"""Errors of the config and of its chains come together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from artifacts.protocol import FieldError, PlannedVariant, PlanRequest, PlanResponse
from server.config.errors import ConfigError
from server.config.fields import Config
from server.errors import OptimizerError
from server.planning import plan

CHAIN_ERROR = FieldError(path="variants.int8.chain[0]", message="unknown stage", nearest="prune")
CONFIG_ERROR = FieldError(path="engine.slotz", message="unknown key")
CONFIG = Config(model="demo", variants={"int8": [{"prun": {}}]}, revision="main", store="/s")


class FakeOptimizer:
    def __init__(self, answer: PlanResponse | OptimizerError) -> None:
        self.answer = answer
        self.asked: list[PlanRequest] = []

    async def plan(self, request: PlanRequest) -> PlanResponse:
        self.asked.append(request)
        if isinstance(self.answer, OptimizerError):
            raise self.answer
        return self.answer

    async def build(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def refuse() -> Config:
    content = {"model": "demo", "variants": {"int8": [{"prun": {}}]}, "engine": {"slotz": 1}}
    raise ConfigError("c.yaml", [CONFIG_ERROR], content)


async def errors_of(read: Callable[[], Config], optimizer: FakeOptimizer) -> list[FieldError]:
    with pytest.raises(ConfigError) as caught:
        await plan(read, "c.yaml", optimizer)
    return list(caught.value.errors)


async def test_both_sides_errors_are_shown_together() -> None:
    """A config that is wrong elsewhere still has its chains judged."""
    model_error = FieldError(path="model", message="offline")
    optimizer = FakeOptimizer(PlanResponse(errors=(CHAIN_ERROR, model_error)))
    assert await errors_of(refuse, optimizer) == [CONFIG_ERROR, CHAIN_ERROR]


async def test_a_config_that_is_wrong_touches_no_store() -> None:
    """Its store may be what is wrong; chains are judged without one."""
    optimizer = FakeOptimizer(PlanResponse())
    content = {"model": "demo", "variants": {"v": []}, "store": "/somewhere/else"}

    def wrong() -> Config:
        raise ConfigError("c.yaml", [CONFIG_ERROR], content)

    await errors_of(wrong, optimizer)
    assert [request.store for request in optimizer.asked] == [None]


async def test_a_store_in_nobodys_home_is_the_optimizers_to_refuse() -> None:
    """Its error comes with all others, so nothing here may fail on it before."""
    error = FieldError(path="store", message="no home")
    optimizer = FakeOptimizer(PlanResponse(errors=(error,)))
    config = CONFIG.model_copy(update={"store": "~nouser/store"})
    assert await errors_of(lambda: config, optimizer) == [error]


async def test_an_optimizer_that_fails_hides_no_config_error() -> None:
    """What is known to be wrong is told in any case."""
    optimizer = FakeOptimizer(OptimizerError("not installed"))
    assert await errors_of(refuse, optimizer) == [CONFIG_ERROR]


async def test_chain_errors_of_a_good_config_are_config_errors() -> None:
    """They end the start before anything listens."""
    optimizer = FakeOptimizer(PlanResponse(errors=(CHAIN_ERROR,)))
    assert await errors_of(lambda: CONFIG, optimizer) == [CHAIN_ERROR]


async def test_a_build_uses_the_pinned_revision_and_the_configured_threads() -> None:
    """What is built is what was planned, even if the branch moves meanwhile."""
    variant = PlannedVariant(recipe="r", chain=())
    optimizer = FakeOptimizer(PlanResponse(revision="abc", variants={"int8": variant}))
    planned = await plan(lambda: CONFIG, "c.yaml", optimizer)
    request = planned.build_request("int8", variant, threads=2)
    assert (request.revision, request.threads, request.store) == ("abc", 2, "/s")
    assert optimizer.asked[0].revision == "main"


async def test_what_is_left_open_is_refused_before_it_is_planned() -> None:
    """A space is the search's; the other variants are judged all the same, here and elsewhere."""
    optimizer = FakeOptimizer(PlanResponse(errors=(CHAIN_ERROR,)))
    variants = {"int8": [{"prun": {}}], "open": [{"prune": {"amount": {"low": 0.1, "high": 0.5}}}]}
    config = Config(model="demo", variants=variants)
    space, chain = await errors_of(lambda: config, optimizer)
    assert (space.path, chain) == ("variants.open.chain[0].prune.amount", CHAIN_ERROR)
    assert "inference-unlimited search" in space.remedy

    def wrong() -> Config:
        raise ConfigError("c.yaml", [CONFIG_ERROR], {"model": "demo", "variants": variants})

    assert await errors_of(wrong, optimizer) == [CONFIG_ERROR, space, CHAIN_ERROR]
    assert [list(request.variants) for request in optimizer.asked] == [["int8"], ["int8"]]
