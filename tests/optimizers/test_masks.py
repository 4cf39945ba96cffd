"""Masks against plain sorting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers import masks


def _oracle(scores: list[float], count: int) -> list[bool]:
    order = sorted(range(len(scores)), key=scores.__getitem__)[:count]
    return [index in order for index in range(len(scores))]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 12),
    amount=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
    levels=st.integers(1, 9),
)
def test_exactly_the_share_goes(
    *, rows: int, columns: int, amount: float, seed: int, levels: int
) -> None:
    """However many scores are equal: over the whole matrix, and within every output."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (rows, columns), generator=generator).float()
    whole = masks.lowest(scores, amount)
    assert whole.flatten().tolist() == _oracle(
        scores.flatten().tolist(), round(amount * scores.numel())
    )
    for line, mask in zip(scores, masks.lowest_of_each_output(scores, amount), strict=True):
        assert mask.tolist() == _oracle(line.tolist(), round(amount * columns))


def test_two_of_every_four_go() -> None:
    """The lowest two of each group, along the inputs."""
    scores = torch.rand(5, 12, generator=torch.Generator().manual_seed(1))
    mask = masks.two_of_four(scores)
    for line, gone in zip(scores, mask, strict=True):
        for start in range(0, 12, 4):
            group = slice(start, start + 4)
            assert gone[group].tolist() == _oracle(line[group].tolist(), 2)
    with pytest.raises(RuntimeError):
        masks.two_of_four(torch.rand(3, 6))
