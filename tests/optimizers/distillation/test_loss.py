"""The divergence that students are trained on, against a slow computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optimizers.distillation import loss
from optimizers.distillation.loss import divergences

POSITIONS, VOCABULARY = (3, 5), 11


def _logits(seed: int, vocabulary: int = VOCABULARY) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(*POSITIONS, vocabulary, generator=generator)


def _slow(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> list[float]:
    found = []
    for s, t in zip(
        student.double().numpy().reshape(-1, student.shape[-1]) / temperature,
        teacher.double().numpy().reshape(-1, teacher.shape[-1]) / temperature,
        strict=True,
    ):
        p = np.exp(t) / np.exp(t).sum()
        q = np.exp(s) / np.exp(s).sum()
        found.append(float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))))
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("chunk", [1, 4 * VOCABULARY * 4, 1 << 20])
def test_it_is_the_divergence_of_the_softened_predictions(
    temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each position, however many are computed at once; the teacher comes first."""
    monkeypatch.setattr(loss, "_CHUNK_BYTES", chunk)
    student, teacher = _logits(1), _logits(2)
    found = divergences(student, teacher, temperature).tolist()
    assert found == pytest.approx(_slow(student, teacher, temperature), rel=1e-4, abs=1e-5)
    assert found != pytest.approx(_slow(teacher, student, temperature), rel=1e-2)


def test_its_gradient_is_the_difference_of_the_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """(softmax(s/T) - softmax(t/T)) / T, in chunks of two positions too."""
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 2 * VOCABULARY * 4)
    student, teacher = _logits(1).requires_grad_(), _logits(2)
    divergences(student, teacher, 2.0).sum().backward()
    expected = (torch.softmax(student / 2, -1) - torch.softmax(teacher / 2, -1)) / 2
    torch.testing.assert_close(student.grad, expected.detach())


def test_models_of_two_paddings_are_compared_where_both_have_tokens() -> None:
    """Rows that only fill up a vocabulary take no probability."""
    student, teacher = _logits(1, VOCABULARY + 4), _logits(2)
    torch.testing.assert_close(
        divergences(student, teacher), divergences(student[..., :VOCABULARY], teacher)
    )


def test_the_same_predictions_diverge_by_nothing() -> None:
    assert divergences(_logits(1), _logits(1)).abs().max() < 1e-6
