"""Who drafts for whom, and what of it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.errors import BugError
from server.config.errors import ConfigError
from server.config.sources import load
from server.config.speculations import drafts_of, problem_of_drafts
from server.drafts import DraftMethod, Drafts, drafters_first


def write(folder: Path, variants: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(f"model: demo\nvariants:\n{variants}", encoding="utf-8")
    return path


def errors_of(folder: Path, variants: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, variants), environment={}, flags={})
    return {one.path: f"{one.message} {one.remedy} {one.nearest}" for one in caught.value.errors}


def test_both_ways_are_read(tmp_path: Path) -> None:
    """A variant without the section has none."""
    path = write(
        tmp_path,
        "  a: {chain: [], speculation: {method: draft, variant: c, max_draft_tokens: 4}}\n"
        "  b: {chain: [], speculation: {method: prompt_lookup, adaptive: false}}\n"
        "  c: []\n",
    )
    assert drafts_of(load(path, environment={}, flags={})) == {
        "a": Drafts(DraftMethod.DRAFT, "c", 4),
        "b": Drafts(DraftMethod.PROMPT_LOOKUP, "", 8, adaptive=False),
    }


@pytest.mark.parametrize(
    ("speculation", "field", "told"),
    [
        ("{method: draft}", "variant", "is required with method draft Name the variant that gu"),
        ("{method: draft, variant: leen}", "variant", "no such variant Other variants: lean. lean"),
        ("{method: draft, variant: a}", "variant", "is this variant itself"),
        ("{method: prompt_lookup, variant: lean}", "variant", "means nothing to prompt_lookup"),
        ("{method: guess}", "method", "should be 'prompt_lookup' or 'draft', got 'guess'"),
        ("{method: prompt_lookup, max_draft_tokens: 0}", "max_draft_tokens", "greater than or eq"),
        ("{method: prompt_lookup, max_draft_tokens: 65}", "max_draft_tokens", "less than or equal"),
        ("{method: prompt_lookup, tokens: 4}", "tokens", "unknown key"),
    ],
)
def test_mistakes_name_the_field_and_the_remedy(
    tmp_path: Path, speculation: str, field: str, told: str
) -> None:
    """All of them before anything is built."""
    errors = errors_of(tmp_path, f"  a: {{chain: [], speculation: {speculation}}}\n  lean: []\n")
    assert told in errors[f"variants.a.speculation.{field}"]


def test_nobody_drafts_for_itself_by_way_of_others(tmp_path: Path) -> None:
    """The way is told."""
    variants = "".join(
        f"  {name}: {{chain: [], speculation: {{method: draft, variant: {other}}}}}\n"
        for name, other in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a"))
    )
    errors = errors_of(tmp_path, variants)
    assert errors["variants.a.speculation.variant"].startswith(
        "drafts for itself: a asks b asks c asks a Let the smallest"
    )
    assert "variants.d.speculation.variant" not in errors


@pytest.mark.parametrize(
    ("drafts", "told"),
    [
        (Drafts(DraftMethod.PROMPT_LOOKUP, "", 8), None),
        (Drafts(DraftMethod.PROMPT_LOOKUP, "b", 8), "means nothing to prompt_lookup"),
        (Drafts(DraftMethod.DRAFT, "c", 8), None),
        (Drafts(DraftMethod.DRAFT, "b", 8), None),  # who asks c
        (Drafts(DraftMethod.DRAFT, "d", 8), "drafts for itself: a asks d asks a"),
        (Drafts(DraftMethod.DRAFT, "a", 8), "is this variant itself"),
        (Drafts(DraftMethod.DRAFT, "", 8), "is required with method draft"),
        (Drafts(DraftMethod.DRAFT, "e", 8), "no such variant"),
    ],
)
def test_one_variant_more_is_judged_as_in_a_config(drafts: Drafts, told: str | None) -> None:
    """Beside what the others have; what it had itself counts no more."""
    had: dict[str, Drafts | None] = {
        "a": Drafts(DraftMethod.DRAFT, "c", 8),
        "b": Drafts(DraftMethod.DRAFT, "c", 8),
        "c": None,
        "d": Drafts(DraftMethod.DRAFT, "a", 8),
    }
    problem = problem_of_drafts("a", drafts, "abcd", had)
    assert (problem and problem.message) == told
    assert problem is None or problem.path == "variants.a.speculation.variant"


def test_drafters_come_first_and_the_order_is_kept_otherwise() -> None:
    """Also through several."""
    assert drafters_first("abcd", {"a": "c", "c": "d"}) == ("d", "c", "a", "b")
    assert drafters_first("abcd", {}) == ("a", "b", "c", "d")
    with pytest.raises(BugError, match="itself"):
        drafters_first("ab", {"a": "b", "b": "a"})
