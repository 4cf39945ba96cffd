"""Log-probabilities under the raw distribution, in nats.

Knows nothing of requests, or of which tokens they are wanted for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.engine.distribution import top_indices
from server.engine.messages import TokenLogprob


def log_total(logits: NDArray[np.float32], highest: float) -> float:
    """Log of the sum of the exponentials of (vocab,) logits; ``highest`` is one of them."""
    shifted = np.exp(logits - np.float32(highest))
    return float(highest) + float(np.log(shifted.sum(dtype=np.float64)))


def top_logprobs(
    logits: NDArray[np.float32], maxima: NDArray[np.float32], count: int, total: float
) -> tuple[TokenLogprob, ...]:
    """Those of the ``count`` likeliest tokens, highest first, ties by id.

    Args:
        logits: (vocab,).
        maxima: (blocks,), the highest logit of each equal part of the vocabulary.
        count: 0..vocab.
        total: See ``log_total``.
    """
    return tuple(
        TokenLogprob(int(index), float(logits[index]) - total)
        for index in top_indices(logits, maxima, count)
    )
