"""The part of a config that is compared: the named variants, and no budget in their way.

Owns both cuts. Knows nothing of chains.
"""

from __future__ import annotations

from collections.abc import Sequence

from artifacts.protocol import FieldError
from server.budget import Budget
from server.config.budgets import budget_of
from server.config.errors import ConfigError, nearest
from server.config.fields import BudgetSection, Config


def budgets(config: Config) -> dict[str, Budget]:
    """The budget of each variant that has one."""
    found = {name: budget_of(config, name) for name in config.variants}
    return {name: budget for name, budget in found.items() if budget is not None}


def select(config: Config, names: Sequence[str] | None, source: str) -> Config:
    """The config with these variants alone, or with all of them; over-budget ones are built too.

    Raises:
        ConfigError: A name is unknown, or there is none.
    """
    known = list(config.variants)
    errors = [
        FieldError(
            path="--variants",
            message=f"no variant {name!r}",
            remedy=f"Configured variants: {', '.join(known)}.",
            nearest=nearest(name, known),
        )
        for name in names or ()
        if name not in config.variants
    ]
    if errors:
        raise ConfigError(source, errors)
    chosen = [name for name in known if names is None or name in names]
    return config.model_copy(
        update={
            "budget": BudgetSection(),
            "variants": {
                name: config.variants[name].model_copy(update={"budget": None}) for name in chosen
            },
            "traffic": {},
        }
    )
