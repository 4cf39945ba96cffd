"""Which weights of a matrix go, by a score: exactly so many, the lowest first.

Owns the patterns that zeros may make (anywhere, or two of every four along the inputs) and the
groups that weights are compared in. Scores are (outputs, inputs) tensors, masks are true where a
weight goes. Knows nothing of where scores come from.
"""

from __future__ import annotations

from typing import Any, Literal

Pattern = Literal["unstructured", "2:4"]
GROUP, GONE = 4, 2  # of every four weights along the inputs, two go


def lowest(scores: Any, amount: float) -> Any:
    """Mark ``round(amount * size)`` of all scores, the lowest; of equals, the first."""
    flat = scores.flatten()
    return _lowest_of_rows(flat[None], round(amount * flat.numel())).view(scores.shape)


def lowest_of_each_output(scores: Any, amount: float) -> Any:
    """Mark ``round(amount * inputs)`` scores of every row, the lowest; of equals, the first."""
    return _lowest_of_rows(scores, round(amount * scores.shape[1]))


def two_of_four(scores: Any) -> Any:
    """Mark the two lowest of every four scores along the inputs, whose number is divisible."""
    return _lowest_of_rows(scores.reshape(-1, GROUP), GONE).view(scores.shape)


def _lowest_of_rows(scores: Any, count: int) -> Any:
    import torch

    mask = torch.zeros_like(scores, dtype=torch.bool)
    order = torch.argsort(scores, dim=1, stable=True)[:, :count]
    return mask.scatter_(1, order, value=True)
