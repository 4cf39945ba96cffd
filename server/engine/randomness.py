"""Counter-based randomness: the n-th number of a seed, whatever happened before.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) keyed by the
request's seed, with the token's position as the counter. So a seed gives the same text whatever
else is in the batch. Knows nothing of probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np

_UNIT = 2.0**-53
_BLOCK = 4  # numbers of one Philox counter


class Uniforms:
    """One generator of numpy's, set anew for every block: making one per token costs more."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(0)
        self._counter = np.zeros(4, np.uint64)
        self._key = np.zeros(2, np.uint64)
        self._state: Any = {  # numpy's own type for it is private
            "bit_generator": "Philox",
            "state": {"counter": self._counter, "key": self._key},
            "buffer": np.zeros(_BLOCK, np.uint64),
            "buffer_pos": _BLOCK,
            "has_uint32": 0,
            "uinteger": 0,
        }

    def at(self, seed: int, position: int) -> Iterator[float]:
        """Endless independent numbers in [0, 1) for one position of one seed.

        Several of these may be read in turns; not by several threads.
        """
        for block in count():
            # The position is the counter's second word, so that positions never share a block.
            self._counter[0], self._counter[1], self._key[0] = block, position, seed
            self._bits.state = self._state
            for word in self._bits.random_raw(_BLOCK).tolist():
                yield (word >> 11) * _UNIT
