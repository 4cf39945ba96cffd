"""How far a student's predictions are from its teacher's, without a second copy of the logits.

Owns the divergence and the chunks of positions that it is computed in. Knows nothing of models and
of training.
"""

from __future__ import annotations

from typing import Any

_CHUNK_BYTES = 32 << 20  # of one chunk's log-probabilities


def divergences(student: Any, teacher: Any, temperature: float = 1.0) -> Any:
    """KL(teacher || student) of every position, in nats, over the vocabulary that both have.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015
    (https://arxiv.org/abs/1503.02531): both distributions are softened by the temperature. The
    log-probabilities of a chunk are computed again for its gradient, so that those of one chunk are
    all that is ever held.

    Args:
        student: Logits (..., vocabulary), which may ask for a gradient.
        teacher: Logits of the same positions, without one.
        temperature: What logits are divided by.

    Returns:
        (positions,) in the order of the logits.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    shared = min(student.shape[-1], teacher.shape[-1])
    positions = max(1, _CHUNK_BYTES // (4 * shared))
    chunks = zip(
        student[..., :shared].flatten(0, -2).split(positions),
        teacher[..., :shared].flatten(0, -2).split(positions),
        strict=True,
    )
    return torch.cat(
        [
            checkpoint(
                _divergences, one, other, temperature, use_reentrant=False, preserve_rng_state=False
            )
            for one, other in chunks
        ]
    )


def _divergences(student: Any, teacher: Any, temperature: float) -> Any:
    from torch.nn.functional import kl_div, log_softmax

    predicted = log_softmax(student.float() / temperature, dim=-1)
    wanted = log_softmax(teacher.float() / temperature, dim=-1)
    return kl_div(predicted, wanted, reduction="none", log_target=True).sum(dim=-1)
