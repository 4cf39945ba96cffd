"""What generated tokens must keep to, as the engine sees it: a mask before each token.

Knows nothing of grammars, of text or of who makes a constraint.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class ConstraintError(Exception):
    """A constraint gave up: its own bounds were reached, or it contradicts itself."""


class Constraint(Protocol):
    """One request's state; used by one thread at a time."""

    def exclude(self, scores: NDArray[np.float32]) -> None:
        """Set the (vocab,) scores of all tokens that may not come next to -inf.

        Raises:
            ConstraintError: It cannot be told.
        """
        ...

    def accept(self, token_id: int) -> bool:
        """Take the token that was generated.

        Returns:
            Whether nothing can follow it any more.

        Raises:
            ConstraintError: It was none of those that might come.
        """
        ...
