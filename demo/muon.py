"""Muon in float32: momentum whose matrix-shaped update is made nearly orthogonal.

Owns the update rule for the hidden matrices. Knows nothing about which parameters those are, nor
about schedules. `torch.optim.Muon` orthogonalizes in bfloat16, which a processor without bfloat16
arithmetic does about ten times slower than the rest of the training step; this one stays in
float32 and handles all matrices of a shape in one batched product.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

# The quintic of Keller Jordan's Muon: steepest at zero, singular values land near one, not on it.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return [n, rows, columns] `matrices` with their singular values pushed towards one."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """Nesterov momentum with orthogonalized updates, for two-dimensional parameters only."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        """Take `lr` per unit of spectral norm, raised for tall matrices by sqrt(rows/columns)."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        with torch.no_grad():
            for group in self.param_groups:
                shapes: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        shapes[parameter.shape].append(parameter)
                for parameters in shapes.values():
                    self._update(parameters, group)

    def _update(self, parameters: list[torch.nn.Parameter], group: dict[str, float]) -> None:
        """Move parameters of one shape against their orthogonalized momentum."""
        rows, columns = parameters[0].shape
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        updates = orthogonalize(torch.stack([self._momentum(p, group) for p in parameters]))
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            parameter.sub_(update, alpha=scale)

    def _momentum(self, parameter: torch.nn.Parameter, group: dict[str, float]) -> torch.Tensor:
        """Fold the gradient into the running mean and return the Nesterov look-ahead."""
        gradient = parameter.grad
        if gradient is None:
            raise ValueError("parameter without a gradient")
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        mean: torch.Tensor = state["mean"]
        mean.lerp_(gradient, 1.0 - group["momentum"])
        return gradient.lerp(mean, group["momentum"])
