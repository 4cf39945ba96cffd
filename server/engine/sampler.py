"""From logits to tokens: bias, penalties, exclusions, temperature, filters, draw, logprobs.

Owns the order of processing: logit_bias, penalties (repetition over prompt and output; presence and
frequency over output), what is excluded, temperature, top_k, typical_p, top_p, min_p.
Log-probabilities are of the raw distribution. Knows nothing of slots, steps or text.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from artifacts.scores import Scores, empty_scores, softmax
from server.engine.constraint import ConstraintError
from server.engine.distribution import (
    block_sums,
    draw,
    keep_typical,
    top_indices,
    top_tokens,
)
from server.engine.logprobs import log_total, top_logprobs
from server.engine.messages import Recorded, Sampling, Submit, Token
from server.engine.randomness import Uniforms
from server.engine.sequence import Sequence


class Unsampled(StrEnum):
    """Why no token could be chosen."""

    NOT_FINITE = "The logits are not finite."
    NOTHING_LEFT = (
        "No token is left that may come next; allow more, or exclude fewer with logit_bias, "
        "allowed_token_ids, bad_words and the response format."
    )


class Sampler:
    """Chooses next tokens; keeps scratch memory for one vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        self._reshaped = np.empty(vocab_size, np.float32)
        self._uniforms = Uniforms()
        self._scores = empty_scores(0, vocab_size, sampled=0)
        self._best: list[int] = []
        self._finite: list[bool] = []

    def temperature(self, sequence: Sequence) -> float:
        """At which temperature the session is to give probabilities for ``choose``; 0 for none."""
        sampling = sequence.request.sampling
        if sampling.temperature == 0.0 or _narrows(sampling) or _reshapes(sampling, sequence):
            return 0.0
        return sampling.temperature

    def read(self, scores: Scores) -> None:
        """Take a step's scores, with probabilities where ``temperature`` says so.

        ``choose`` looks at them until the next, and overwrites probabilities.
        """
        self._scores = scores
        self._best = scores.best.tolist()
        self._finite = np.isfinite(scores.best_logits).tolist()

    def choose(
        self, sequence: Sequence, position: int, drawn: int = -1
    ) -> Token | Unsampled | ConstraintError:
        """Choose a sequence's next token.

        Args:
            sequence: Its tokens so far are those that the scores come after.
            position: Where its logits lie in the scores.
            drawn: Where its probabilities lie; -1 where the session was not asked for them.

        Returns:
            The token, or why there is none.
        """
        if not self._finite[position]:
            return Unsampled.NOT_FINITE
        best = self._best[position]
        if _is_plain(sequence):
            return Token(best)
        scores = self._scores
        row = _Row(scores.logits[position], scores.block_maxima[position], best)
        if drawn >= 0:
            row.probabilities = scores.probabilities[drawn]
            row.block_sums = scores.block_sums[drawn]
        return self._choose(row, sequence)

    def _choose(self, row: _Row, sequence: Sequence) -> Token | Unsampled | ConstraintError:
        sampling = sequence.request.sampling
        chosen = row
        if _reshapes(sampling, sequence):
            np.copyto(self._reshaped, row.logits)
            try:
                _reshape(self._reshaped, sequence)
            except ConstraintError as error:
                return error
            chosen = _row_of(self._reshaped, blocks=len(row.block_maxima))
            if not np.isfinite(highest := self._reshaped[chosen.best]):
                return Unsampled.NOTHING_LEFT if highest == -np.inf else Unsampled.NOT_FINITE
        token: int | None = chosen.best
        if sampling.temperature != 0.0:
            token = self._draw(chosen, sequence)
        if token is None:
            return Unsampled.NOT_FINITE
        _remember(sequence, sampling, token)
        if sampling.logprobs is None and not sequence.request.recorded:
            return Token(token)
        return _with_logprobs(row, token, sequence.request)

    def _draw(self, row: _Row, sequence: Sequence) -> int | None:
        sampling = sequence.request.sampling
        inside: NDArray[np.int64] | None = None
        weights, sums = row.probabilities, row.block_sums
        if weights is None or sums is None:
            logits = row.logits
            if _narrows(sampling) and sampling.top_k < len(logits):
                inside = top_tokens(logits, row.block_maxima, sampling.top_k)
                logits = logits[inside]
            weights = softmax(logits[None], sampling.temperature)[0]
            blocks = len(row.block_maxima) if inside is None else 1
            sums = block_sums(weights.reshape(blocks, -1))
        if not np.isfinite(sums).all():
            return None
        if sampling.typical_p < 1.0:
            keep_typical(weights, sampling.typical_p)
            sums = block_sums(weights.reshape(len(sums), -1))
        index = draw(
            weights,
            sums,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            numbers=self._uniforms.at(sampling.seed, sequence.known),
        )
        return index if inside is None else int(inside[index])


class _Row:
    """The scores of one position."""

    __slots__ = ("best", "block_maxima", "block_sums", "logits", "probabilities")

    def __init__(
        self, logits: NDArray[np.float32], block_maxima: NDArray[np.float32], best: int
    ) -> None:
        self.logits = logits
        self.block_maxima = block_maxima
        self.best = best
        self.probabilities: NDArray[np.float32] | None = None
        self.block_sums: NDArray[np.float32] | None = None


def _row_of(logits: NDArray[np.float32], *, blocks: int) -> _Row:
    return _Row(logits, logits.reshape(blocks, -1).max(axis=1), int(logits.argmax()))


def _is_plain(sequence: Sequence) -> bool:
    """Whether the token with the highest logit is wanted and nothing else, as it is."""
    sampling = sequence.request.sampling
    is_bare = sampling.logprobs is None and not sequence.request.recorded
    return sampling.temperature == 0.0 and is_bare and not _reshapes(sampling, sequence)


def _narrows(sampling: Sampling) -> bool:
    """Whether a few of the highest logits are all that counts."""
    return sampling.top_k > 0


def _has_penalties(sampling: Sampling) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


def _reshapes(sampling: Sampling, sequence: Sequence) -> bool:
    """Whether anything but temperature and filters changes the scores of this step."""
    return (
        sequence.generated < sampling.min_tokens
        or bool(sampling.logit_bias or sampling.allowed_token_ids or sampling.bad_words)
        or _has_penalties(sampling)
        or sequence.request.constraint is not None
    )


def _reshape(scores: NDArray[np.float32], sequence: Sequence) -> None:
    """Apply bias, penalties and what is excluded to (vocab,) scores in place.

    Raises:
        ConstraintError: The request's constraint gave up.
    """
    sampling = sequence.request.sampling
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
    if sampling.allowed_token_ids:
        _exclude_others(scores, sequence)
    output = sequence.tokens[sequence.prompt_length : sequence.known]
    for *before, last in sampling.bad_words:
        if not before or output[-len(before) :].tolist() == before:
            scores[last] = -np.inf
    if sequence.request.constraint is not None:
        sequence.request.constraint.exclude(scores)


def _exclude_others(scores: NDArray[np.float32], sequence: Sequence) -> None:
    """Exclude what ``allowed_token_ids`` does not name."""
    if sequence.allowed is None:
        sequence.allowed = np.array(sequence.request.sampling.allowed_token_ids, np.int64)
    kept = scores[sequence.allowed]
    scores.fill(-np.inf)
    scores[sequence.allowed] = kept


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


def _with_logprobs(row: _Row, token: int, request: Submit) -> Token:
    logits = row.logits
    total = log_total(logits, logits[row.best])
    logprob = float(logits[token]) - total
    recorded = None
    if request.recorded:
        ids = top_indices(logits, row.block_maxima, request.recorded)
        recorded = Recorded(logprob, ids, logits[ids] - np.float32(total))
    if request.sampling.logprobs is None:
        return Token(token, recorded=recorded)
    top = top_logprobs(logits, row.block_maxima, request.sampling.logprobs, total)
    return Token(token, logprob, top, recorded)
