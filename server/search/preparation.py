"""Before a search: what is open in a config, whether any of it can be built, and the study's name.

Owns the complaints about a space, all of them before anything is built. Knows nothing of trials.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts import texts
from artifacts.digest import sha256_file, sha256_json
from artifacts.protocol import FieldError
from server.config.errors import ConfigError
from server.config.fields import Config
from server.optimizer import Optimizer
from server.planning import Planned, chains_of, plan, plan_request
from server.search import recipes
from server.search.chains import words
from server.search.spaces import Space, read_spaces

DEFAULT_NAME = "search"
"""The variant that the built-in space is of, in a config that leaves nothing open."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A config that can be searched.

    Attributes:
        planned: The whole config, with the plans of its hand-written variants.
        chains: Of the hand-written variants, as the config has them.
        space: What the config leaves open; None where that is nothing.
        warnings: What was seen that is not wrong altogether.
    """

    planned: Planned
    chains: Mapping[str, Any]
    space: Space | None
    warnings: tuple[str, ...]


async def prepare(read: Callable[[], Config], source: str, optimizer: Optimizer) -> Prepared:
    """Read a config and judge all that it says.

    Args:
        read: Reads it, or raises ``ConfigError``.
        source: What to call the config in messages.
        optimizer: Judges chains.

    Raises:
        ConfigError: With every error of the config, of its spaces and of its chains.
        OptimizerError: The optimizer could not answer.
    """
    try:
        config = read()
    except ConfigError as error:
        raise ConfigError(source, [*error.errors, *_space_errors(error.content)]) from None
    chains = chains_of(config)
    space, errors = read_spaces(chains)
    settled = {name: chain for name, chain in chains.items() if name not in space.chains}
    only = {name: config.variants[name] for name in settled}
    try:
        planned = await plan(
            lambda: config.model_copy(update={"variants": only}), source, optimizer
        )
    except ConfigError as error:
        raise ConfigError(source, [*errors, *error.errors]) from None
    if errors:
        raise ConfigError(source, errors)
    planned = replace(planned, config=config)
    warnings: list[str] = []
    if space.chains:
        refused = await refusals(space, config, optimizer)
        if errors := [error for error in refused.values() if error.path]:
            raise ConfigError(source, errors)
        warnings = [error.message for error in refused.values()]
    return Prepared(planned, settled, space if space.chains else None, tuple(warnings))


async def refusals(space: Space, config: Config, optimizer: Optimizer) -> dict[str, FieldError]:
    """What the optimizer says of a space's examples, by variant; nothing where it takes them all.

    With a path where it refuses every example of the variant, without where it refuses some.
    """
    examples = {f"{one.variant} {index}": one for index, one in enumerate(space.examples())}
    response = await optimizer.plan(
        plan_request(config, {name: list(one.chain) for name, one in examples.items()})
    )
    found: dict[str, FieldError] = {}
    for variant in space.chains:
        own = [name for name, one in examples.items() if one.variant == variant]
        bad = [name for name in own if name not in response.variants]
        if not bad:
            continue
        first = f"variants.{bad[0]}"
        error = next(
            (one for one in response.errors if one.path.startswith(f"{first}.")),
            FieldError(path=first, message="It cannot be planned"),
        )
        path = error.path.replace(first, f"variants.{variant}", 1)
        chain = f"in the chain {words(examples[bad[0]].chain)!r}"
        if len(bad) == len(own):
            found[variant] = error.model_copy(
                update={"path": path, "message": f"{error.message.rstrip('.')}, {chain}"}
            )
        else:
            found[variant] = FieldError(
                path="",
                message=f"{path}: {error.message.rstrip('.')}, {chain}. Trials that draw such a "
                "chain are refused and not counted.",
            )
    return found


async def built_in_space(config: Config, layers: int | None, optimizer: Optimizer) -> Space:
    """The richest of the built-in spaces of which this optimizer can build everything."""
    for chain in recipes.default_chains(layers):
        space, _ = read_spaces({DEFAULT_NAME: chain})
        if not await refusals(space, config, optimizer):
            return space
    return space


async def study_name(prepared: Prepared, source: str) -> str:
    """What the study of a config is called: the same wherever the same is searched for.

    Whatever would make figures of trials mean something else is part of it, the machine is not.
    """
    config = prepared.planned.config
    evaluation = None
    if config.evaluation is not None:
        text = texts.check(config.evaluation.text)
        evaluation = await asyncio.to_thread(sha256_file, text)
    digest = sha256_json(
        {
            "model": prepared.planned.response.revision or config.revision,
            "evaluation": evaluation,
            "budget": config.budget.model_dump(mode="json"),
            "objectives": [name.value for name in config.search.objectives],
            "engine": config.engine.model_dump(mode="json"),
            "open": {
                name: config.variants[name].model_dump(mode="json")
                for name in ([] if prepared.space is None else prepared.space.chains)
            },
            "built_in": recipes.DEFAULT_VERSION if prepared.space is None else None,
        }
    )
    stem = re.sub(r"[^a-z0-9]+", "-", Path(source).stem.lower()).strip("-") or "config"
    return f"{stem}-{digest[:12]}"


def _space_errors(content: Mapping[str, Any]) -> list[FieldError]:
    """What is wrong with the spaces of a config that is wrong elsewhere."""
    variants = content.get("variants")
    if not isinstance(variants, dict):
        return []
    chains = {
        str(name): value.get("chain") if isinstance(value, dict) else value
        for name, value in variants.items()
    }
    return read_spaces(chains)[1]
