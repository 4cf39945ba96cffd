"""The budget of each variant: the config's, with the variant's own fields in their place.

Owns how the two are put together and what is wrong with both together. Knows nothing of judging.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from artifacts.protocol import FieldError
from server.budget import LIMITS, Budget
from server.config.fields import BudgetSection, Config

_OWN_TEXT = "demo"  # a model that brings a text of users


def budget_of(config: Config, variant: str) -> Budget | None:
    """The budget that a variant keeps to; None when no limit is set for it."""
    return budget_with(config, config.variants[variant].budget)


def budget_with(config: Config, own: BudgetSection | None) -> Budget | None:
    """The config's budget with a variant's own fields in their place; None without any limit."""
    section = config.budget
    if own is not None:
        section = section.model_copy(
            update={name: getattr(own, name) for name in own.model_fields_set}
        )
    budget = Budget(**dict(section))
    return budget if budget.limits else None


def problems(content: Mapping[str, Any]) -> Iterator[FieldError]:
    """What no single field can know, of a config as it was read; skips what is no section."""
    sections = dict(_sections(content))
    limited = [path for path, section in sections.items() if _limits(section)]
    known = frozenset(BudgetSection.model_fields)  # a misspelt limit is told by its name
    if sections and not limited and all(known.issuperset(one) for one in sections.values()):
        yield FieldError(
            path=next(iter(sections)),
            message="sets no limit",
            remedy=f"Set one of {', '.join(LIMITS)}, or remove it.",
        )
    has_text = bool(content.get("evaluation")) or content.get("model") == _OWN_TEXT
    for path in limited:
        if "perplexity_ratio" in _limits(sections[path]) and not has_text:
            yield FieldError(
                path=f"{path}.perplexity_ratio",
                message="cannot be judged on text that the original writes itself",
                remedy="Name a text in evaluation.text, or limit kl_mean instead.",
            )


def _sections(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each place of a budget that holds anything."""
    variants = content.get("variants")
    places = {"budget": content} | {
        f"variants.{name}.budget": variant
        for name, variant in (variants if isinstance(variants, dict) else {}).items()
        if isinstance(variant, dict)
    }
    for path, place in places.items():
        if isinstance(section := place.get("budget"), dict) and section:
            yield path, section


def _limits(section: Mapping[str, Any]) -> list[str]:
    return [field for field in LIMITS if section.get(field) is not None]
