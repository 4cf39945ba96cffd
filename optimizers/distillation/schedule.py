"""How the learning rate goes over a training that ends with its tokens or with its time.

Knows nothing of optimizers.
"""

from __future__ import annotations

import math

WARMUP = 0.05  # of the training


def rate(done: float) -> float:
    """Share of the highest learning rate, when so much of a training is done (0..1).

    A linear warm-up, then half a cosine down to zero (Loshchilov & Hutter, "SGDR: Stochastic
    Gradient Descent with Warm Restarts", 2016, https://arxiv.org/abs/1608.03983).
    """
    if done < WARMUP:
        return done / WARMUP
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (done - WARMUP) / (1.0 - WARMUP))))
