"""Where a variant's drafted tokens come from, and in which order variants are then brought up.

Owns the two ways of drafting by name, and what cannot be: a variant that drafts for itself, also by
way of others, and one whose tokens are others. Knows nothing of engines or of how configs are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from artifacts.errors import BugError
from artifacts.manifest import Manifest

OTHER_TOKENS = "the tokens of the drafting variant are not this variant's"
OTHER_TOKENS_REMEDY = "Name a variant with the same tokenizer and vocabulary."


class DraftMethod(StrEnum):
    """Who guesses."""

    PROMPT_LOOKUP = "prompt_lookup"
    DRAFT = "draft"


@dataclass(frozen=True, slots=True)
class Drafts:
    """A variant's.

    Attributes:
        method: Who guesses.
        variant: The other variant that drafts; ``""`` where none does.
        max_draft_tokens: Of one sequence in one step, at most.
        adaptive: Whether there are only as many as pay.
    """

    method: DraftMethod
    variant: str
    max_draft_tokens: int
    adaptive: bool = True


@dataclass(frozen=True, slots=True)
class Choice:
    """What is said of drafts where nothing may be said as well: to have none is a choice.

    Attributes:
        drafts: What was chosen; None for none.
    """

    drafts: Drafts | None


def same_tokens(own: Manifest, other: Manifest) -> bool:
    """Whether a token's number means the same in both artifacts."""
    return _tokens(own) == _tokens(other)


def _tokens(manifest: Manifest) -> tuple[int, str | None]:
    digests = {file.name: file.sha256 for file in manifest.files}
    return manifest.graph.vocab_size, digests.get("tokenizer.json")


def drafters_first(names: Iterable[str], drafters: Mapping[str, str]) -> tuple[str, ...]:
    """The names in their order, but whoever drafts before those that it drafts for.

    Args:
        names: All variants.
        drafters: By variant, who drafts for it.

    Raises:
        BugError: One drafts for itself.
    """
    ordered: dict[str, None] = {}

    def add(name: str, before: tuple[str, ...]) -> None:
        if name in before:
            raise BugError(f"Variant {name!r} drafts for itself.")
        if (drafter := drafters.get(name)) is not None:
            add(drafter, (*before, name))
        ordered.setdefault(name)

    for name in names:
        add(name, ())
    return tuple(ordered)
