"""Counter-based randomness: the n-th number of a seed, whatever happened before.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) keyed by the
request's seed, with the token's position as the counter. So a seed gives the same text whatever
else is in the batch. Knows nothing of probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_UNIT = 2.0**-53
_BLOCK = 4  # numbers of one Philox counter


def uniforms(seed: int, position: int) -> Iterator[float]:
    """Endless independent numbers in [0, 1) for one position of one seed."""
    # The position is the counter's second word, so that positions never share a block.
    bits = np.random.Philox(key=seed, counter=[0, position, 0, 0])
    while True:
        for word in bits.random_raw(_BLOCK).tolist():
            yield (word >> 11) * _UNIT
