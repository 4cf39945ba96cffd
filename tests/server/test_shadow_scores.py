"""The three measures of a shadow against slow computations over whole distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr

from server.engine.messages import Recorded, Token, TokenLogprob
from server.shadow_scores import ShadowScores, kl_lower_bound, shadow_scores

Floats = NDArray[np.float64]

# Log-probabilities are float32: what 64 of them sum to is known to about this.
ROUNDING = 1e-5


def distributions(seed: int, vocabulary: int, sharpness: float, apart: float) -> tuple[Floats, ...]:
    """(n, vocabulary) log-probabilities of a serving variant and of a candidate."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(6, vocabulary)) * sharpness
    others = logits + rng.normal(size=logits.shape) * apart
    return log_softmax(logits, axis=1), log_softmax(others, axis=1)


def bound(log_p: Floats, log_q: Floats, k: int) -> Floats:
    """The bound, from what a server would have recorded."""
    top = np.argsort(-log_p, axis=1)[:, :k]
    p, q = (np.take_along_axis(one, top, axis=1).astype(np.float32) for one in (log_p, log_q))
    return kl_lower_bound(p, q)


def truth(log_p: Floats, log_q: Floats) -> Floats:
    total: Floats = rel_entr(np.exp(log_p), np.exp(log_q)).sum(axis=1)
    return total


cases = {
    "seed": st.integers(0, 2**32 - 1),
    "vocabulary": st.integers(65, 600),
    "sharpness": st.floats(0.01, 8),
    "apart": st.floats(0, 4),
}


@settings(max_examples=150, deadline=None)
@example(seed=40, vocabulary=65, sharpness=0.25, apart=2.625)  # little is left of the candidate
@given(**cases)
def test_the_bound_never_exceeds_the_divergence(
    seed: int, vocabulary: int, sharpness: float, apart: float
) -> None:
    """Whatever the distributions are; and it is no less than 0."""
    log_p, log_q = distributions(seed, vocabulary, sharpness, apart)
    found, exact = bound(log_p, log_q, 64), truth(log_p, log_q)
    assert (found <= exact + ROUNDING * (1 + exact)).all()
    assert (found >= 0).all()


@settings(max_examples=100, deadline=None)
@given(**cases)
def test_the_bound_is_the_divergence_over_lumped_tokens(
    seed: int, vocabulary: int, sharpness: float, apart: float
) -> None:
    """The same by adding up what the others have, which the server cannot."""
    log_p, log_q = distributions(seed, vocabulary, sharpness, apart)
    order = np.argsort(-log_p, axis=1)
    p, q = (np.take_along_axis(np.exp(one), order, axis=1) for one in (log_p, log_q))
    lumped = (np.concatenate([x[:, :64], x[:, 64:].sum(1, keepdims=True)], axis=1) for x in (p, q))
    lumped = tuple(lumped)
    # What single precision cannot tell from nothing only lowers the bound.
    known = lumped[1][:, 64] > 1e-3
    expected = rel_entr(*lumped).sum(axis=1)
    found = bound(log_p, log_q, 64)
    assert found[known] == pytest.approx(expected[known], abs=ROUNDING, rel=1e-3)


@pytest.mark.parametrize("vocabulary", [2, 65])
def test_with_one_token_left_nothing_is_lumped(vocabulary: int) -> None:
    """Then the bound is the divergence itself."""
    log_p, log_q = distributions(5, vocabulary, 2.0, 1.0)
    exact = truth(log_p, log_q)
    # A remainder that single precision cannot tell from nothing lowers the bound by so much.
    assert bound(log_p, log_q, vocabulary - 1) == pytest.approx(exact, abs=1e-4)
    assert exact.max() > 0.1  # else it would say nothing


def test_a_candidate_of_the_same_opinion_has_exactly_nothing_against_it() -> None:
    """Not nearly: the same numbers give 0."""
    log_p, _ = distributions(7, 300, 3.0, 0.0)
    assert bound(log_p, log_p, 64).tolist() == [0.0] * 6


def test_what_a_candidate_excludes_is_finite_and_large() -> None:
    """A counter that once was infinite is for ever."""
    serving = np.log(np.array([[0.5, 0.25]], np.float32))
    candidate = np.array([[-np.inf, np.log(0.5)]], np.float32)
    (found,) = kl_lower_bound(serving, candidate)
    assert 40 < found < 60  # half of a hundred nats
    excluded_by_both = np.array([[np.log(0.5), -np.inf]], np.float32)
    assert math.isfinite(kl_lower_bound(excluded_by_both, excluded_by_both)[0])


def recorded(logprob: float, ids: list[int], probabilities: list[float]) -> Recorded:
    return Recorded(logprob, np.array(ids), np.log(np.array(probabilities, np.float32)))


def thought(token: int, logprob: float, best: int) -> Token:
    return Token(token, logprob, (TokenLogprob(best, -0.1),))


def test_an_answer_s_sums() -> None:
    """Agreement is of the likeliest tokens, the difference of the tokens that were given."""
    served = [recorded(-1.0, [3, 4], [0.5, 0.25]), recorded(-2.0, [9, 3], [0.5, 0.25])]
    candidate = [thought(4, -1.5, best=3), thought(9, -1.75, best=3)]
    among = np.log(np.array([[0.25, 0.5], [0.5, 0.25]], np.float32))
    scores = shadow_scores(served, candidate, among)
    first = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert scores == ShadowScores(2, pytest.approx(first, abs=1e-6), 1, -0.25)
