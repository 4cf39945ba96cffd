"""Log-probabilities of a prompt's own tokens, against the model run token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

from server.engine.messages import BACKGROUND, Finished, FinishReason, Scored, Scoring, Token

PROMPT = [int(token) for token in np.random.default_rng(8).integers(0, 64, 100)]


def _scored(harness: Any, name: str) -> list[Scored]:
    return [event for event in harness.events[name] if isinstance(event, Scored)]


def _expected(harness: Any, prompt: list[int], position: int) -> np.ndarray:
    """(vocab,) log-probabilities of what stands at a position."""
    return special.log_softmax(harness.logits(prompt[:position]).astype(np.float64))


@pytest.mark.parametrize("step_tokens", [16, 256])
def test_scores_are_the_models(harness: Any, session: Any, step_tokens: int) -> None:
    """Chunk by chunk, each token with its log-probability and the likeliest others."""
    harness.attach(session, step_tokens=step_tokens)
    harness.submit("r", PROMPT, max_tokens=3, scoring=Scoring(first=1, top=4))
    final = harness.final("r")
    tokens = [token for event in _scored(harness, "r") for token in event.tokens]
    assert [token.token_id for token in tokens] == PROMPT[1:]
    for position, token in enumerate(tokens, start=1):
        expected = _expected(harness, PROMPT, position)
        assert token.logprob == pytest.approx(expected[token.token_id], abs=1e-5)
        best = np.argsort(-expected, kind="stable")[:4]
        assert [other.token_id for other in token.top] == best.tolist()
    assert final.usage.completion_tokens == 3
    # What is generated behind it is what is generated without it.
    harness.submit("plain", PROMPT, max_tokens=3)
    harness.final("plain")
    assert harness.tokens("r") == harness.tokens("plain")


def test_chosen_tokens_from_a_position_on(harness: Any, session: Any) -> None:
    """``among`` gives the log-probabilities of named tokens, position by position."""
    first = 61
    among = np.random.default_rng(2).integers(0, 64, (len(PROMPT) - first, 5))
    harness.attach(session, step_tokens=24)
    scoring = Scoring(first=first, among=among)
    harness.submit("r", PROMPT, max_tokens=0, scoring=scoring, priority=BACKGROUND)
    final = harness.final("r")
    assert isinstance(final, Finished)
    assert final.reason is FinishReason.LENGTH
    events = _scored(harness, "r")
    assert [t.token_id for event in events for t in event.tokens] == PROMPT[first:]
    values = np.concatenate([event.among for event in events])
    for row, position in enumerate(range(first, len(PROMPT))):
        expected = _expected(harness, PROMPT, position)[among[row]]
        np.testing.assert_allclose(values[row], expected, atol=1e-5)


def test_scoring_does_not_reuse_what_it_must_compute(harness: Any, session: Any) -> None:
    """A remembered prompt is computed again where its logits are wanted, and only there."""
    harness.attach(session)
    harness.submit("before", PROMPT, max_tokens=1)
    harness.final("before")
    harness.submit("all", PROMPT, max_tokens=0, scoring=Scoring(first=1))
    assert harness.final("all").usage.cached_tokens == 0
    harness.submit("end", PROMPT, max_tokens=0, scoring=Scoring(first=80))
    assert harness.final("end").usage.cached_tokens == 79
    assert [t.token_id for e in _scored(harness, "end") for t in e.tokens] == PROMPT[80:]


def test_one_token_has_nothing_to_score(harness: Any, session: Any) -> None:
    """Its request ends well all the same."""
    harness.attach(session)
    harness.submit("r", [7], max_tokens=2, scoring=Scoring(first=1, top=2))
    assert isinstance(harness.final("r"), Finished)
    assert not _scored(harness, "r")
    assert len(harness.tokens("r")) == 2


def test_streams_go_on_beside_it(harness: Any, session: Any) -> None:
    """A step scores a bounded number of tokens, and decodes everybody else meanwhile."""
    harness.attach(session, step_tokens=256)
    session.gate.clear()
    harness.submit("stream", [1, 2], max_tokens=20)
    harness.submit("scored", PROMPT, max_tokens=0, scoring=Scoring(first=1))
    session.gate.set()
    harness.final("scored")
    harness.final("stream")
    widest = max(row.logits for rows in session.steps for row in rows)
    assert 1 < widest <= 32
    assert all(isinstance(t, Token) for e in _scored(harness, "scored") for t in e.tokens)
