"""Who drafts for which variant, as configured, and what is wrong with all of them together.

Judges one that is loaded into a running server by the same rules, in the same words. Knows nothing
of how tokens are drafted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from artifacts.protocol import FieldError
from server.config.errors import nearest
from server.config.fields import Config, SpeculationSection
from server.drafts import DraftMethod, Drafts


def drafts_of(config: Config) -> dict[str, Drafts]:
    """By variant, of those that have any."""
    return {
        name: drafts_from(section)
        for name, variant in config.variants.items()
        if (section := variant.speculation) is not None
    }


def drafts_from(section: SpeculationSection) -> Drafts:
    """What one section says."""
    return Drafts(section.method, section.variant or "", section.max_draft_tokens, section.adaptive)


def problem_of_drafts(
    name: str, drafts: Drafts, names: Iterable[str], had: Mapping[str, Drafts | None]
) -> FieldError | None:
    """What no single field can know, of a variant that a running server is to have.

    Args:
        name: The variant.
        drafts: What it asks for.
        names: All variants that there are.
        had: What they have, as far as they have any.
    """
    others = [other for other in names if other != name]
    problem = _problem(name, drafts.method, drafts.variant or None, others)
    if problem is not None or not drafts.variant:
        return problem
    drafters = {other: its.variant for other, its in had.items() if its is not None and its.variant}
    return _circle(name, {**drafters, name: drafts.variant})


def problems_of_speculation(content: Mapping[str, Any]) -> Iterator[FieldError]:
    """What no single field can know, of a config as it was read; skips what is no section."""
    variants = content.get("variants")
    if not isinstance(variants, dict):
        return
    drafters: dict[str, str] = {}
    for name, variant in variants.items():
        section = variant.get("speculation") if isinstance(variant, dict) else None
        if isinstance(section, dict):
            others = [str(other) for other in variants if other != name]
            method = section.get("method")
            problem = _problem(str(name), method, section.get("variant"), others)
            if problem is not None:
                yield problem
            elif method == DraftMethod.DRAFT:
                drafters[str(name)] = str(section["variant"])
    for name in drafters:
        if (circle := _circle(name, drafters)) is not None:
            yield circle


def _circle(name: str, drafters: Mapping[str, str]) -> FieldError | None:
    """The way from a variant to itself, by who drafts for whom, if there is one."""
    way = [name]
    while (drafter := drafters.get(way[-1])) is not None and drafter not in way:
        way.append(drafter)
    if drafter != name:
        return None
    return FieldError(
        path=_path(name),
        message=f"drafts for itself: {' asks '.join([*way, name])}",
        remedy="Let the smallest of them have no drafts, or look them up.",
    )


def _problem(name: str, method: Any, drafter: Any, others: Sequence[str]) -> FieldError | None:
    """What is wrong with the variant that a section names, or does not name."""
    if method == DraftMethod.PROMPT_LOOKUP and drafter is not None:
        return FieldError(
            path=_path(name), message="means nothing to prompt_lookup", remedy="Leave it away."
        )
    if method != DraftMethod.DRAFT or drafter in others:
        return None
    if drafter is None:
        return FieldError(
            path=_path(name),
            message="is required with method draft",
            remedy=f"Name the variant that guesses: {', '.join(others)}.",
        )
    return FieldError(
        path=_path(name),
        message="is this variant itself" if drafter == name else "no such variant",
        remedy=f"Other variants: {', '.join(others)}.",
        nearest=nearest(str(drafter), others),
    )


def _path(name: str) -> str:
    return f"variants.{name}.speculation.variant"
