"""From a config to what the optimizer is asked, and all errors of both sides at once.

Owns the requests to the optimizer. Knows nothing of processes or of variants' states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts.protocol import (
    BuildRequest,
    FieldError,
    JudgeRequest,
    PlannedVariant,
    PlanRequest,
    PlanResponse,
    Texts,
)
from server.budget import Budget
from server.config.budgets import budget_of
from server.config.errors import ConfigError
from server.config.fields import Config, TextFile
from server.errors import OptimizerError
from server.optimizer import Optimizer
from server.search.spaces import split_open


@dataclass(frozen=True, slots=True)
class Planned:
    """A config whose every chain is valid."""

    config: Config
    response: PlanResponse

    @property
    def store(self) -> Path:
        """The artifact store's folder."""
        return Path(self.config.store).expanduser()

    @property
    def budgets(self) -> dict[str, Budget]:
        """The budget of each variant that has one."""
        found = {name: budget_of(self.config, name) for name in self.config.variants}
        return {name: budget for name, budget in found.items() if budget is not None}

    def unsettled(self) -> Planned:
        """The same, with nothing taken as found: the optimizer is asked for every artifact."""
        variants = {
            name: planned.model_copy(update={"artifact": None})
            for name, planned in self.response.variants.items()
        }
        return replace(self, response=self.response.model_copy(update={"variants": variants}))

    def build_request(
        self, variant: str, planned: PlannedVariant, *, threads: int, publish: bool = False
    ) -> BuildRequest:
        """What the optimizer is asked to build, and whether to publish it to the object store."""
        config = self.config
        return BuildRequest(
            model=config.model,
            revision=self.response.revision or config.revision,
            calibration=_texts(config.calibration),
            evaluation=_texts(config.evaluation),
            variant=variant,
            chain=planned.chain,
            recipe=planned.recipe,
            store=str(self.store),
            remote=config.remote,
            publish=publish and config.remote is not None,
            offline=config.offline,
            threads=config.optimizer.threads or threads,
            optimum_python=config.optimizer.optimum_python,
        )


def judge_request(build: BuildRequest, artifact: str) -> JudgeRequest:
    """What the optimizer is asked to measure, of what it was (or would be) asked to build."""
    same = build.model_dump(include=set(JudgeRequest.model_fields))
    return JudgeRequest(**same, artifact=artifact)


def part_request(build: BuildRequest, lengths: Iterable[int]) -> PlanRequest:
    """The question of which recipes belong to the first stages of a variant's chain."""
    same = build.model_dump(include=set(PlanRequest.model_fields))
    return PlanRequest(**same, variants={part(build.variant, n): build.chain[:n] for n in lengths})


def part(variant: str, length: int) -> str:
    """What the first stages of a variant's chain are called in that question."""
    return f"{variant}[:{length}]"


async def plan(read: Callable[[], Config], source: str, optimizer: Optimizer) -> Planned:
    """Read the config and have its chains judged.

    Args:
        read: Reads it, or raises ``ConfigError``.
        source: What to call the config in messages.
        optimizer: Judges chains.

    Raises:
        ConfigError: With every error of the config and of its chains.
        OptimizerError: The optimizer could not answer.
    """
    try:
        config = read()
    except ConfigError as error:
        chain_errors = await _judge_anyway(error.content, optimizer)
        merged = (*error.errors, *chain_errors)
        raise ConfigError(source, list(dict.fromkeys(merged))) from None
    settled, open_errors = split_open(chains_of(config))
    response = await optimizer.plan(plan_request(config, settled))
    if errors := (*open_errors, *response.errors):
        raise ConfigError(source, errors)
    return Planned(config, response)


async def plan_one(
    config: Config, optimizer: Optimizer, name: str, chain: Sequence[Any]
) -> PlannedVariant | Sequence[FieldError]:
    """Have one more chain judged, or learn what is wrong with it.

    Raises:
        OptimizerError: The optimizer could not answer.
    """
    response = await optimizer.plan(plan_request(config, {name: list(chain)}))
    return response.errors or response.variants[name]


def plan_request(config: Config, chains: Mapping[str, Any]) -> PlanRequest:
    """What the optimizer is asked about chains on a config's model and texts."""
    return PlanRequest(
        model=config.model,
        revision=config.revision,
        calibration=_texts(config.calibration),
        evaluation=_texts(config.evaluation),
        variants=dict(chains),
        store=config.store,
        offline=config.offline,
    )


async def _judge_anyway(content: dict[str, Any], optimizer: Optimizer) -> list[Any]:
    """Errors of the chains of a config that is wrong elsewhere; its store is left alone."""
    variants = content.get("variants")
    if not isinstance(variants, dict) or not variants:
        return []
    chains = {str(name): _chain(variant) for name, variant in variants.items()}
    settled, open_errors = split_open(chains)
    request = PlanRequest(
        model="demo",  # its own is judged when all else is right: it may be large, or far away
        variants=settled,
        offline=content.get("offline") is True,  # substitutes of the hub are looked up all the same
    )
    with contextlib.suppress(OptimizerError):  # what the config itself says wrong is shown anyway
        response = await optimizer.plan(request)
        chain_errors = [one for one in response.errors if one.path.startswith("variants")]
        return [*open_errors, *chain_errors]
    return open_errors


def chains_of(config: Config) -> dict[str, Any]:
    """The chain of each variant, as the config has it."""
    return {name: variant.chain for name, variant in config.variants.items()}


def _chain(variant: Any) -> Any:
    """The chain of a variant as it was read: the rest of a mapping is the server's to judge."""
    return variant.get("chain") if isinstance(variant, dict) else variant


def _texts(file: TextFile | None) -> Texts | None:
    return None if file is None else Texts(text=file.text)
