"""What a candidate would have thought of the tokens that another variant gave.

Owns the three measures. The divergence is a lower bound: beyond the serving variant's likeliest
tokens only the remaining mass is known, and lumping tokens together never adds to a divergence (the
data-processing inequality; Cover and Thomas, "Elements of Information Theory", 2006, 2.8). Knows
nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.engine.messages import Recorded, Token

# Masses are added up from single precision: a smaller remainder is rounding, and one of the
# candidate's that is taken for less than it is would break the bound, so it is given as much more.
_LEAST = 1e-6
# What a candidate excludes outright would make sums infinite for ever; a bound stays one when it
# is given a little.
_LOWEST = -100.0


@dataclass(frozen=True, slots=True)
class ShadowScores:
    """Sums over the positions of one answer.

    Attributes:
        positions: How many.
        kl_lower_bound: Of KL(serving || candidate), nats.
        agreements: At how many both think the same token likeliest.
        logprob_difference: Of the given tokens, the candidate's less the serving variant's, nats.
    """

    positions: int
    kl_lower_bound: float
    agreements: int
    logprob_difference: float


@dataclass(frozen=True, slots=True)
class Shadowed:
    """One answer that a candidate was judged on.

    Attributes:
        serving: Who gave it.
        candidate: Who was judged.
        tokens: Of the prompt and the answer, which the candidate computed.
        scores: What came of it.
    """

    serving: str
    candidate: str
    tokens: int
    scores: ShadowScores


def shadow_scores(
    served: Sequence[Recorded],
    candidate: Sequence[Token],
    candidate_logprobs: NDArray[np.float32],
) -> ShadowScores:
    """Compare two variants on one answer.

    Args:
        served: What the serving variant thought, for each of its ``n`` tokens.
        candidate: The same tokens with the candidate's log-probability and its likeliest token.
        candidate_logprobs: (n, k), of the tokens that ``served`` holds, in their order.
    """
    serving_logprobs = np.stack([recorded.logprobs for recorded in served])
    divergence = kl_lower_bound(serving_logprobs, candidate_logprobs)
    pairs = list(zip(served, candidate, strict=True))
    return ShadowScores(
        positions=len(pairs),
        kl_lower_bound=float(divergence.sum()),
        agreements=sum(token.top[0].token_id == int(recorded.ids[0]) for recorded, token in pairs),
        logprob_difference=sum(
            max(token.logprob or 0.0, _LOWEST) - recorded.logprob for recorded, token in pairs
        ),
    )


def kl_lower_bound(
    serving: NDArray[np.float32], candidate: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(n,) KL over ``k`` tokens and one bucket for all others, from (n, k) log-probabilities."""
    log_p, log_q = (np.maximum(one.astype(np.float64), _LOWEST) for one in (serving, candidate))
    p, q = np.exp(log_p), np.exp(log_q)
    known = (p * (log_p - log_q)).sum(axis=1)
    rest_p = np.maximum(1.0 - p.sum(axis=1), _LEAST)
    rest_q = np.maximum(1.0 - q.sum(axis=1), 0.0) + _LEAST
    divergence: NDArray[np.float64] = known + rest_p * np.log(rest_p / rest_q)
    return np.maximum(divergence, 0.0)
