"""From logits to tokens: bias, penalties, temperature, filters, draw, log-probabilities.

Owns the order of processing: logit_bias, penalties (repetition over prompt and output; presence
and frequency over output), temperature, top_k, top_p, min_p. Log-probabilities are of the raw
distribution. Knows nothing of slots, steps or text.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from server.engine.distribution import draw, top_indices
from server.engine.messages import Sampling, Token, TokenLogprob
from server.engine.randomness import Uniforms
from server.engine.sequence import Sequence


class Sampler:
    """Chooses the next token of each row; keeps scratch memory for one vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        self._reshaped = np.empty(vocab_size, np.float32)
        self._shifted = np.empty(vocab_size, np.float32)
        self._uniforms = Uniforms()

    def sample(self, logits: NDArray[np.float32], rows: Rows[Sequence]) -> list[Token | None]:
        """Choose one token per row.

        Args:
            logits: (rows, vocab) float32, left as it is.
            rows: The sequences in the same order.

        Returns:
            One token per row; None where the row's logits are not finite.
        """
        best = logits.argmax(axis=1)
        tops = logits[np.arange(len(rows)), best]
        finite = np.isfinite(tops).tolist()
        greedy = best.tolist()
        return [
            self._choose(logits[index], sequence, greedy[index]) if finite[index] else None
            for index, sequence in enumerate(rows)
        ]

    def _choose(self, logits: NDArray[np.float32], sequence: Sequence, best: int) -> Token:
        sampling = sequence.request.sampling
        scores = logits
        if _reshapes(sampling, sequence):
            scores = self._reshaped
            np.copyto(scores, logits)
            _reshape(scores, sampling, sequence)
            best = int(scores.argmax())
        token = best if sampling.temperature == 0.0 else self._draw(scores, sequence, best)
        _remember(sequence, sampling, token)
        if sampling.logprobs is None:
            return Token(token)
        return _with_logprobs(logits, token, sampling.logprobs)

    def _draw(self, scores: NDArray[np.float32], sequence: Sequence, best: int) -> int:
        sampling = sequence.request.sampling
        # Subtracting first keeps a tiny temperature from overflowing.
        np.subtract(scores, scores[best], out=self._shifted)
        if sampling.temperature != 1.0:
            np.divide(self._shifted, np.float32(sampling.temperature), out=self._shifted)
        return draw(
            self._shifted,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            numbers=self._uniforms.at(sampling.seed, sequence.known),
        )


def _has_penalties(sampling: Sampling) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


def _reshapes(sampling: Sampling, sequence: Sequence) -> bool:
    """Whether anything but temperature and filters changes the scores of this step."""
    early = sequence.generated < sampling.min_tokens
    return bool(sampling.logit_bias) or _has_penalties(sampling) or early


def _reshape(scores: NDArray[np.float32], sampling: Sampling, sequence: Sequence) -> None:
    """Apply bias, penalties and min_tokens to (vocab,) scores in place."""
    for token, bias in sampling.logit_bias:
        scores[token] += bias
    if sampling.repetition_penalty != 1.0:
        # Keskar et al., "CTRL", 2019: divide positive scores, multiply negative ones.
        seen = _seen(scores, sequence)
        penalty = np.float32(sampling.repetition_penalty)
        values = scores[seen]
        scores[seen] = np.where(values > 0, values / penalty, values * penalty)
    if sequence.output_counts and (sampling.presence_penalty or sampling.frequency_penalty):
        tokens = np.fromiter(sequence.output_counts.keys(), np.int64)
        counts = np.fromiter(sequence.output_counts.values(), np.float32)
        scores[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if sequence.generated < sampling.min_tokens:
        ends = sampling.stop_token_ids | sampling.eos_token_ids
        scores[list(ends)] = -np.inf


def _seen(scores: NDArray[np.float32], sequence: Sequence) -> NDArray[np.bool_]:
    """(vocab,) which tokens occur in prompt or output."""
    if sequence.seen is None:
        sequence.seen = np.zeros(len(scores), np.bool_)
        sequence.seen[sequence.tokens[: sequence.known]] = True
    return sequence.seen


def _remember(sequence: Sequence, sampling: Sampling, token: int) -> None:
    if _has_penalties(sampling):
        sequence.output_counts[token] = sequence.output_counts.get(token, 0) + 1
        if sequence.seen is not None:
            sequence.seen[token] = True


def _with_logprobs(logits: NDArray[np.float32], token: int, count: int) -> Token:
    highest = logits.max()
    log_total = float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    top = tuple(
        TokenLogprob(int(index), float(logits[index]) - log_total)
        for index in top_indices(logits, count)
    )
    return Token(token, float(logits[token]) - log_total, top)
