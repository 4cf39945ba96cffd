"""Log-probabilities of tokens that a prompt holds already, from the logits of the tokens before.

Of the raw distribution, in nats. Knows nothing of steps, of slots or of what they are wanted for.
"""

from __future__ import annotations

import numpy as np

from artifacts.scores import Scores
from server.engine.logprobs import log_total, top_logprobs
from server.engine.messages import Scored, Token
from server.engine.sequence import Sequence


def score_prompt(scores: Scores, position: int, sequence: Sequence, count: int) -> Scored | None:
    """Score the tokens of a prompt behind ``count`` positions that a step has just computed.

    Args:
        scores: Of the step.
        position: Where the sequence's first wanted logits lie in it.
        sequence: Whose; the step's tokens count as computed.
        count: How many of its logits score a token of the prompt; at least 1.

    Returns:
        None where logits are not finite.
    """
    scoring = sequence.request.scoring
    assert scoring is not None  # noqa: S101 - only such sequences are scored
    wanted = slice(position, position + count)
    if not np.isfinite(scores.best_logits[wanted]).all():
        return None
    after = min(sequence.computed, sequence.prompt_length - 1)  # the last token that is scored
    targets = sequence.tokens[after - count + 1 : after + 1]
    among = None
    if scoring.among is not None:
        first = after - count + 1 - scoring.first
        among = np.empty((count, scoring.among.shape[1]), np.float32)
    tokens: list[Token] = []
    for index, token in enumerate(targets.tolist()):
        logits = scores.logits[position + index]
        total = log_total(logits, scores.best_logits[position + index])
        if among is not None and scoring.among is not None:
            among[index] = logits[scoring.among[first + index]] - total
        maxima = scores.block_maxima[position + index]
        top = top_logprobs(logits, maxima, scoring.top, total)
        tokens.append(Token(token, float(logits[token]) - total, top))
    return Scored(sequence.request.request_id, tuple(tokens), among)
