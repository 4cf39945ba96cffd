"""Before a search: what is open in a config, whether any of it can be built, and the study's name.

Owns the complaints about a space, all of them before anything is built. Knows nothing of trials.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from server.search.spaces import Drawn, Space, read_spaces
from server.search.values import label_of

_MOST_WARNINGS = 3
_ENOUGH = 5  # examples with an option, all refused, to tell that it never works


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
        errors, warnings = await refusals(space, config, optimizer)
        if errors:
            raise ConfigError(source, errors)
    return Prepared(planned, settled, space if space.chains else None, tuple(warnings))


@dataclass(frozen=True, slots=True)
class _Refused:
    """An example of a space that the optimizer refuses, with the options that it has."""

    chosen: frozenset[tuple[str, str]]
    error: FieldError


async def refusals(
    space: Space, config: Config, optimizer: Optimizer
) -> tuple[list[FieldError], list[str]]:
    """What the optimizer says of a space's examples: errors, and warnings.

    It is an error where every example is refused that a variant has, or that has a certain option;
    where only some are, it is a warning.
    """
    examples = [(one, taken, label_of([one.variant, one.chain])) for one, taken in space.examples()]
    names = {label: f"{one.variant} {n}" for n, (one, _, label) in enumerate(examples)}
    chains = {names[label]: list(one.chain) for one, _, label in examples}
    response = await optimizer.plan(plan_request(config, chains))
    uses: Counter[tuple[str, str]] = Counter()
    refused: list[_Refused] = []
    for one, taken, label in examples:
        chosen = frozenset({*taken.items(), ("", one.variant)})
        uses.update(chosen)
        if names[label] not in response.variants:
            refused.append(_Refused(chosen, _of_example(names[label], one, response.errors)))
    bad = Counter(option for each in refused for option in each.chosen)
    hopeless = {option for option, count in bad.items() if count == uses[option] >= _ENOUGH}
    errors = {
        each.error.path: each.error
        for each in reversed(refused)
        if not hopeless.isdisjoint(each.chosen)
    }
    warnings = {
        each.error.path: f"{each.error.path}: {each.error.message.rstrip('.')}. Trials that draw "
        "such a chain are refused and not counted."
        for each in reversed(refused)
    }
    return list(errors.values())[::-1], list(warnings.values())[::-1][:_MOST_WARNINGS]


def _of_example(name: str, drawn: Drawn, errors: Sequence[FieldError]) -> FieldError:
    """The first error of an example, told of the variant that it is drawn from."""
    prefix = f"variants.{name}."
    error = next(
        (one for one in errors if one.path.startswith(prefix)),
        FieldError(path=prefix, message="It cannot be planned"),
    )
    path = f"variants.{drawn.variant}.{error.path.removeprefix(prefix)}"
    message = f"{error.message.rstrip('.')}, in the chain {words(drawn.chain)!r}"
    return error.model_copy(update={"path": path, "message": message})


async def built_in_space(config: Config, layers: int | None, optimizer: Optimizer) -> Space:
    """The richest of the built-in spaces of which this optimizer can build everything."""
    for chain in recipes.default_chains(layers):
        # Named by what it is: an optimizer that knows other stages draws for other places.
        space, _ = read_spaces({f"built-in-{sha256_json(chain)[:8]}": chain})
        if not any(await refusals(space, config, optimizer)):
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
