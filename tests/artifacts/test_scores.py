"""The numpy definition of scores, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from artifacts.scores import block_width, in_blocks, score
from artifacts.session import Row, temperatures_of


@pytest.mark.parametrize(
    ("vocab_size", "width"),
    [(49_152, 128), (50_257, 29), (128_256, 128), (151_936, 128), (256, 128), (7, 7), (1, 1)],
)
def test_blocks_are_equal_and_about_128_wide(vocab_size: int, width: int) -> None:
    """GPT-2's vocabulary is 29 x 1733; a prime one is a single block."""
    assert vocab_size % width == 0
    assert block_width(vocab_size) == width


def test_scores_follow_their_definition() -> None:
    """Rows with a temperature have probabilities, in order; blocks are maxima and sums."""
    logits = (np.random.default_rng(0).standard_normal((3, 300)) * 5).astype(np.float32)
    before = logits.copy()
    scores = score(logits, [0.5, 0.0, 2.0])
    expected = special.softmax(logits[[0, 2]].astype(np.float64) / [[0.5], [2.0]], axis=1)
    np.testing.assert_allclose(scores.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(scores.block_sums.sum(axis=1), 1.0, atol=1e-6)
    assert (scores.best == logits.argmax(axis=1)).all()
    assert (scores.best_logits == logits.max(axis=1)).all()
    assert (scores.block_maxima == in_blocks(logits).max(axis=2)).all()
    assert (logits == before).all()
    assert score(logits, [0.0] * 3).probabilities.shape == (0, 300)


def test_a_temperature_belongs_to_the_last_position_of_its_row() -> None:
    """Rows without logits have none; others have it once."""
    tokens = np.zeros(3, np.int64)
    rows = [Row(0, 0, tokens, 2, 0.5), Row(1, 0, tokens, 0, 0.7), Row(2, 0, tokens, 1)]
    assert temperatures_of(rows) == [0.0, 0.5, 0.0]
