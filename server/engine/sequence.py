"""One request inside the engine: its tokens, how many are computed, and what it has cost.

There are no phases: a sequence has tokens known and tokens computed, and a step lets computed
catch up. Knows nothing of slots' contents, of sampling or of other sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from server.engine.acceptance import Acceptance
from server.engine.messages import BACKGROUND, Submit, Timings, Usage

if TYPE_CHECKING:
    from server.engine.prompt_lookup import NgramIndex


class Sequence:
    """A request that the engine has accepted; owned and changed by its lane alone."""

    __slots__ = (
        "acceptance",
        "accepted",
        "admitted_s",
        "allowed",
        "cached",
        "computed",
        "drafted",
        "first_token_s",
        "known",
        "last_token_s",
        "lookup",
        "output_counts",
        "prompt_length",
        "request",
        "seen",
        "slot",
        "tokens",
    )

    def __init__(self, request: Submit) -> None:
        self.request = request
        self.prompt_length = len(request.prompt)
        self.tokens: NDArray[np.int64] = np.zeros(self.reserve, np.int64)
        self.tokens[: self.prompt_length] = request.prompt
        self.known = self.prompt_length
        self.computed = 0
        self.cached = 0
        self.slot = -1
        self.admitted_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        # Filled by the sampler, only for requests with penalties.
        self.seen: NDArray[np.bool_] | None = None  # (vocab,)
        self.output_counts: dict[int, int] = {}
        self.drafted = 0
        self.accepted = 0
        # Filled by speculation, only where the variant has it.
        self.acceptance: Acceptance | None = None
        self.lookup: NgramIndex | None = None
        # Filled by the sampler, only for requests that allow few tokens.
        self.allowed: NDArray[np.int64] | None = None

    @property
    def reserve(self) -> int:
        """Tokens that the sequence may come to hold: prompt and max_tokens."""
        return self.prompt_length + self.request.sampling.max_tokens

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return self.known - self.prompt_length

    @property
    def missing(self) -> int:
        """Tokens that may still be generated."""
        return self.reserve - self.known

    @property
    def pending(self) -> int:
        """Known tokens that are not computed yet; 1 while decoding."""
        return self.known - self.computed

    @property
    def decodes(self) -> bool:
        """Whether one token is short, and it scores no other."""
        return self.pending == 1 and not self.scores_prompt and self.generates

    @property
    def generates(self) -> bool:
        """Whether more than the prompt is wanted."""
        return self.request.sampling.max_tokens > 0

    @property
    def reusable(self) -> NDArray[np.int64]:
        """(n,) the prompt up to the first token that must be computed, whatever is cached."""
        scoring = self.request.scoring
        return self.tokens[: self.prompt_length if scoring is None else scoring.first]

    @property
    def alike(self) -> int:
        """How many of its first tokens are computed the same in every request that has them.

        Logits are wanted of what follows; a session with two forms of the weights computes that in
        the other one.
        """
        return len(self.reusable) - 1

    @property
    def unscored(self) -> int:
        """Tokens still to be computed before the first one whose logits score another."""
        scoring = self.request.scoring
        return 0 if scoring is None else max(scoring.first - 1 - self.computed, 0)

    @property
    def scores_prompt(self) -> bool:
        """Whether the next token to be computed scores one of the prompt."""
        scoring = self.request.scoring
        return scoring is not None and scoring.first - 1 <= self.computed < self.prompt_length - 1

    @property
    def is_background(self) -> bool:
        """Whether it gives way to everybody."""
        return self.request.priority >= BACKGROUND

    def append(self, token: int, now_s: float) -> None:
        """Add a generated token."""
        self.tokens[self.known] = token
        self.known += 1
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.last_token_s = now_s

    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self.prompt_length, self.generated, self.cached, self.drafted, self.accepted)

    def timings(self, now_s: float) -> Timings:
        """Seconds so far; a part that has not begun is 0."""
        admitted = now_s if self.admitted_s is None else self.admitted_s
        first = now_s if self.first_token_s is None else self.first_token_s
        last = first if self.last_token_s is None else self.last_token_s
        return Timings(
            queue_s=max(admitted - self.request.received_s, 0.0),
            prefill_s=max(first - admitted, 0.0),
            decode_s=max(last - first, 0.0),
        )
