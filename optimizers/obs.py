"""SparseGPT: zeros whose error the weights behind them make up for.

Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023
(https://arxiv.org/abs/2301.00774), after Hassibi & Stork's optimal brain surgeon: columns are taken
from left to right, and each removed weight's effect on the layer's outputs is made up for, as far
as least squares can, by the columns to its right. Works on one matrix. Knows nothing of models.
"""

from __future__ import annotations

from typing import Any

from optimizers import masks

_COLUMNS = 128  # that are chosen from together
_DAMPING = 0.01  # of the mean diagonal, so that the inverse exists


def hessian(inputs: Any) -> Any:
    """Return X^T X of (tokens, inputs) activations, (inputs, inputs) float64."""
    # The sum is taken in float32: half the time, and far finer than the damping.
    return (inputs.T @ inputs).double()


def prune(weight: Any, hessian: Any, *, amount: float, pattern: masks.Pattern) -> None:
    """Zero weights of an (outputs, inputs) float32 matrix in place and correct the others.

    Args:
        weight: ``outputs = inputs @ weight.T``.
        hessian: (inputs, inputs) float64, positive semidefinite.
        amount: Share of every 128 columns, over all outputs; of no effect with 2:4.
        pattern: Where zeros may lie.
    """
    import torch

    inputs = weight.shape[1]
    left = weight.double()
    silent = hessian.diagonal() == 0  # inputs that are always zero: their weights do nothing
    left[:, silent] = 0.0
    inverse = inverse_factor(hessian)
    diagonal = inverse.diagonal()
    step = masks.GROUP if pattern == "2:4" else _COLUMNS
    for begin in range(0, inputs, _COLUMNS):
        end = min(begin + _COLUMNS, inputs)
        errors = torch.zeros_like(left[:, begin:end])
        gone = torch.zeros_like(errors, dtype=torch.bool)
        for column in range(begin, end):
            if (column - begin) % step == 0:
                group = slice(column, min(column + step, end))
                scores = (left[:, group] / diagonal[group]) ** 2
                gone[:, group.start - begin : group.stop - begin] = (
                    masks.two_of_four(scores) if pattern == "2:4" else masks.lowest(scores, amount)
                )
            here = column - begin
            lost = torch.where(gone[:, here], left[:, column], 0.0) / diagonal[column]
            errors[:, here] = lost
            left[:, column:end] -= lost[:, None] * inverse[column, column:end]
            left[gone[:, here], column] = 0.0  # exactly, whatever was rounded
        left[:, end:] -= errors @ inverse[begin:end, end:]
    weight.copy_(left)


def losses(weight: Any, hessian: Any) -> Any:
    """What the outputs' squared error grows by when one weight alone goes: (outputs, inputs).

    After the columns to its right have made up for it; float64.
    """
    silent = hessian.diagonal() == 0
    found = (weight.double() / inverse_factor(hessian).diagonal()) ** 2
    return found.masked_fill_(silent, 0.0)


def inverse_factor(hessian: Any) -> Any:
    """Upper Cholesky factor of the damped inverse: row j is what column j's error is spread by.

    Inputs that are always zero stand by themselves.
    """
    import torch

    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += _DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
