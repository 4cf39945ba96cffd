"""Which of two forms of the weights computes a token.

An artifact may hold its weights twice: in few bits, which is fast for a few rows, since weights
are read from memory; and as int8 with activations in int8 per row, which is fast for many. Owns
the choice. ``by_role`` computes a token whose logits are wanted in the form for generated tokens,
and all others, which are a prompt's, in the form for prompts: that follows from the request alone.
With ``adaptive`` the number of tokens in a step decides, so a result depends on who else is being
served. Knows nothing of graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from artifacts.manifest import Forms
from artifacts.session import Row


def by_role(forms: Forms | None) -> bool:
    """Whether a token is computed otherwise in a prompt than where it was generated."""
    return forms is not None and forms.choice == "by_role"


def reproducible(forms: Forms | None) -> bool:
    """Whether a result follows from its request alone, up to float rounding."""
    return forms is None or forms.choice != "adaptive"


class Run(NamedTuple):
    """Rows, and whether the form for prompts computes them."""

    is_prompts: bool
    rows: Sequence[Row]


def planned(forms: Forms, rows: Sequence[Row]) -> Iterator[Run]:
    """Cut a step into runs; the last one gives the scores of all wanted positions, if any are."""
    if forms.choice == "adaptive":
        yield Run(sum(len(row.tokens) for row in rows) >= forms.rows, rows)
        return
    prompts = [_unwanted(row) for row in rows if row.logits < len(row.tokens)]
    generated = [_wanted(row) for row in rows if row.logits]
    if prompts:
        yield Run(is_prompts=True, rows=prompts)
    if generated:
        yield Run(is_prompts=False, rows=generated)


def _unwanted(row: Row) -> Row:
    """The tokens whose logits nobody wants."""
    return replace(row, tokens=row.tokens[: len(row.tokens) - row.logits], logits=0)


def _wanted(row: Row) -> Row:
    """The tokens behind them."""
    before = len(row.tokens) - row.logits
    return replace(row, start=row.start + before, tokens=row.tokens[before:])
