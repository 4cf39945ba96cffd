"""What may come next: allowed tokens, bad words, constraints, typical sampling, and dead ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.engine.constraint import ConstraintError
from server.engine.distribution import keep_typical
from server.engine.messages import Failed, FailureCode, Finished, FinishReason

Oracle = Callable[[Sequence[int], int], list[int]]
VOCAB = 64


class Alternating:
    """A constraint: even tokens, then odd ones, ``length`` in all; ``fails_at`` gives up."""

    def __init__(self, length: int, fails_at: int | None = None) -> None:
        self.seen: list[int] = []
        self._length = length
        self._fails_at = fails_at

    def exclude(self, scores: NDArray[np.float32]) -> None:
        if len(self.seen) == self._fails_at:
            raise ConstraintError("response_format: too hard")
        scores[(len(self.seen) + 1) % 2 :: 2] = -np.inf

    def accept(self, token_id: int) -> bool:
        self.seen.append(token_id)
        return len(self.seen) == self._length


def test_allowed_tokens_are_all_that_is_generated(harness: Any, session: Any) -> None:
    """The likeliest of the allowed ones comes next, each time."""
    harness.attach(session)
    allowed = (3, 5, 60)
    harness.submit("r", [1, 2], allowed_token_ids=allowed, max_tokens=12)
    harness.final("r")
    tokens = harness.tokens("r")
    known = [1, 2]
    for token in tokens:
        logits = harness.logits(known)
        assert token == max(allowed, key=lambda one: logits[one])
        known.append(token)
    assert len(set(tokens)) > 1


def test_bad_words_do_not_come(harness: Any, session: Any, greedy_oracle: Oracle) -> None:
    """A single token never comes; a sequence comes up to its last token, which does not."""
    harness.attach(session)
    free = greedy_oracle([9], 6)
    harness.submit("one", [9], bad_words=((free[0],),), max_tokens=6)
    harness.submit("two", [9], bad_words=((free[0], free[1]),), max_tokens=6)
    harness.submit("other", [9], bad_words=((free[1], free[0]),), max_tokens=1)
    for name in ("one", "two", "other"):
        harness.final(name)
    assert free[0] not in harness.tokens("one")
    assert harness.tokens("two")[0] == free[0]
    assert harness.tokens("two")[1] != free[1]
    assert harness.tokens("other") == free[:1]


def test_a_bad_word_begins_in_the_output(harness: Any, session: Any, greedy_oracle: Oracle) -> None:
    """What the prompt ends with is no part of it."""
    harness.attach(session)
    (first,) = greedy_oracle([9, 8], 1)
    harness.submit("r", [9, 8], bad_words=((8, first),), max_tokens=1)
    harness.final("r")
    assert harness.tokens("r") == [first]


def test_constraint_is_kept_and_ends(harness: Any, session: Any) -> None:
    """Every token is one of those left, is told to the constraint, and the last one ends."""
    harness.attach(session)
    kept = {name: Alternating(length) for name, length in (("a", 5), ("b", 3))}
    for name, constraint in kept.items():
        harness.submit(name, [1], constraint=constraint, max_tokens=20)
    harness.submit("free", [1], max_tokens=20)
    for name, constraint in kept.items():
        final = harness.final(name)
        assert isinstance(final, Finished)
        assert final.reason is FinishReason.STOP
        assert harness.tokens(name) == constraint.seen
        assert [token % 2 for token in constraint.seen] == [
            n % 2 for n in range(len(constraint.seen))
        ]
    assert isinstance(harness.final("free"), Finished)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"constraint": Alternating(9, fails_at=2)}, "too hard"),
        ({"allowed_token_ids": (3,), "bad_words": ((3,),)}, "No token is left"),
        ({"allowed_token_ids": (3,), "constraint": Alternating(9)}, "No token is left"),
    ],
)
def test_dead_ends_are_the_callers(
    harness: Any, session: Any, greedy_oracle: Oracle, options: dict[str, Any], problem: str
) -> None:
    """Where nothing may follow, that request ends with the reason, and nobody else does."""
    harness.attach(session)
    harness.submit("fine", [4, 4], max_tokens=30)
    harness.submit("stuck", [4, 4], max_tokens=30, **options)
    stuck, fine = harness.final("stuck"), harness.final("fine")
    assert isinstance(stuck, Failed)
    assert stuck.code is FailureCode.INVALID_ARGUMENT
    assert problem in stuck.message
    assert isinstance(fine, Finished)
    assert harness.tokens("fine") == greedy_oracle([4, 4], 30)
    assert harness.loads["a"].running_requests == 0


def _typical(weights: np.ndarray, share: float) -> np.ndarray:
    """Which tokens are kept, by sorting them all."""
    p = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    with np.errstate(divide="ignore"):
        surprise = -np.log(p)
    entropy = float(np.sum(p[p > 0] * surprise[p > 0]))
    deviation = np.abs(surprise - entropy)
    order = np.argsort(deviation, kind="stable")
    count = int(np.searchsorted(np.cumsum(p[order]), share)) + 1
    bound = deviation[order[min(count, len(order)) - 1]]
    return (deviation <= bound + 1e-6) & (p > 0)


@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.99), spread=st.floats(0.1, 6))
@settings(max_examples=200, deadline=None)
def test_typical_keeps_what_sorting_keeps(seed: int, share: float, spread: float) -> None:
    """Halving finds the same tokens as sorting, and leaves their weights alone."""
    scores = np.random.default_rng(seed).standard_normal(500) * spread
    weights = np.exp(scores - scores.max()).astype(np.float32)
    weights[::7] = 0.0
    expected = _typical(weights, share)
    kept = weights.copy()
    keep_typical(kept, share)
    # A bound that rounding moved past one token is all that may differ.
    assert np.count_nonzero((kept > 0) != expected) <= 1
    assert (kept[kept > 0] == weights[kept > 0]).all()


def test_typical_may_leave_out_the_likeliest() -> None:
    """Its defining property: where most of the mass is unlikely tokens, the likeliest is odd."""
    weights = np.array([0.3] + [0.7 / 300] * 300, np.float32)
    keep_typical(weights, 0.5)
    assert weights[0] == 0.0
    assert (weights[1:] > 0).all()


def test_all_alike_are_all_kept() -> None:
    """Ties are inside, however small the share."""
    weights = np.full(100, 0.01, np.float32)
    keep_typical(weights, 0.1)
    assert (weights > 0).all()
