"""SparseGPT on small matrices, against dense least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optimizers import masks, obs


def _layer(outputs: int, inputs: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator)
    given = torch.randn(tokens, inputs, generator=generator) @ mix  # correlated, as in a model
    return torch.randn(outputs, inputs, generator=generator), given


def _error(before: torch.Tensor, after: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((inputs @ (after - before).T) ** 2).sum())


def test_one_weight_s_loss_is_made_up_for_as_least_squares_would() -> None:
    """One weight of a row goes: those to its right become what a dense solve gives."""
    weight, inputs = _layer(1, 12, 400, seed=0)
    pruned = weight.clone()
    # One of twelve; the damping is part of the problem that is solved.
    obs.prune(pruned, obs.hessian(inputs), amount=1 / 12, pattern="unstructured")
    (gone,) = torch.nonzero(pruned[0] == 0).flatten().tolist()
    hessian = obs.hessian(inputs).numpy()
    hessian += 0.01 * hessian.diagonal().mean() * np.eye(12)
    right = slice(gone + 1, 12)
    # Minimise d^T H d over d right of the column, d[gone] = -w[gone], 0 to its left.
    lost = -float(weight[0, gone])
    expected = weight[0].double().numpy().copy()
    expected[gone] = 0.0
    expected[right] += np.linalg.solve(hessian[right, right], -hessian[right, gone] * lost)
    np.testing.assert_allclose(pruned[0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_weight_whose_loss_costs_least_goes() -> None:
    """Of a row, the choice is that of trying each with a dense solve over those to its right."""
    for seed in range(5):
        weight, inputs = _layer(1, 10, 300, seed=seed)
        hessian = obs.hessian(inputs).numpy()
        hessian += 0.01 * hessian.diagonal().mean() * np.eye(10)
        costs = []
        for gone in range(10):
            lost, right = -float(weight[0, gone]), slice(gone + 1, 10)
            change = np.zeros(10)
            change[gone] = lost
            change[right] = np.linalg.solve(hessian[right, right], -hessian[right, gone] * lost)
            costs.append(change @ hessian @ change)
        pruned = weight.clone()
        obs.prune(pruned, obs.hessian(inputs), amount=0.1, pattern="unstructured")
        assert torch.nonzero(pruned[0] == 0).flatten().tolist() == [int(np.argmin(costs))]
        losses = obs.losses(weight, obs.hessian(inputs))
        np.testing.assert_allclose(losses[0].numpy(), costs, rtol=1e-4)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_the_outputs_change_less_than_by_zeroing_alone(pattern: masks.Pattern) -> None:
    """Over several blocks of columns, against zeroing by Wanda's score with nothing made up for."""
    weight, inputs = _layer(24, 300, 2000, seed=3)
    pruned = weight.clone()
    obs.prune(pruned, obs.hessian(inputs), amount=0.5, pattern=pattern)
    scores = weight.abs() * inputs.norm(dim=0)
    mask = (
        masks.two_of_four(scores) if pattern == "2:4" else masks.lowest_of_each_output(scores, 0.5)
    )
    assert _error(weight, pruned, inputs) < 0.75 * _error(weight, weight * ~mask, inputs)
    zeros = pruned == 0
    if pattern == "2:4":
        assert (zeros.view(24, -1, 4).sum(dim=2) == 2).all()
    else:
        for begin in range(0, 300, 128):
            block = zeros[:, begin : begin + 128]
            assert int(block.sum()) == round(0.5 * block.numel())


def test_inputs_that_are_always_zero_lose_their_weights() -> None:
    """Nothing is known of them, and nothing depends on them."""
    weight, inputs = _layer(4, 16, 100, seed=5)
    inputs[:, [2, 9]] = 0.0
    silent = obs.losses(weight, obs.hessian(inputs)) == 0
    assert silent.any(dim=0).nonzero().flatten().tolist() == [2, 9]
    obs.prune(weight, obs.hessian(inputs), amount=0.25, pattern="unstructured")
    assert (weight[:, [2, 9]] == 0).all()
    assert torch.isfinite(weight).all()
