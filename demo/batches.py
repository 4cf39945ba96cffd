"""Token windows for training the demo model, in an order fixed by the seed.

Owns the mix of document kinds in an epoch, the packing of documents into windows and their order.
Knows nothing about the model; any step's batch can be reproduced without the steps before it.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from demo import corpus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer

Ids = npt.NDArray[np.uint16]

# An epoch holds every library file, and one part in so many of each other kind, a different part
# each time: tests are twice the library's size, and functions and chat turns repeat its text.
PARTS = {"library": 1, "tests": 3, "functions": 3, "chat": 6}


def pools(tokenizer: Tokenizer) -> dict[str, list[Ids]]:
    """Return the training split's documents as token ids, by kind."""
    texts: dict[str, list[str]] = {kind: [] for kind in PARTS}
    for document in corpus.train_documents():
        texts["tests" if document.is_test else "library"].append(document.text)
        if document.is_test:
            continue
        for node, source in corpus.functions(document):
            texts["functions"].append(source)
            if turn := corpus.chat(node, source):
                texts["chat"].append(turn)
    return {
        kind: [np.array(encoding.ids, np.uint16) for encoding in tokenizer.encode_batch(group)]
        for kind, group in texts.items()
    }


def epoch_windows(
    pool: dict[str, list[Ids]], separator: int, length: int, seed: int, epoch: int
) -> Ids:
    """Return one epoch as [windows, length + 1] ids; each window's last id is only a target."""
    chosen: list[Ids] = []
    for kind, parts in PARTS.items():
        order = np.random.default_rng([seed, len(pool[kind])]).permutation(len(pool[kind]))
        chosen += [pool[kind][i] for i in order[epoch % parts :: parts]]
    rng = np.random.default_rng([seed, length, epoch])
    between = np.array([separator], np.uint16)
    pieces = [piece for i in rng.permutation(len(chosen)) for piece in (between, chosen[i])]
    stream = np.concatenate([*pieces, between])[rng.integers(length) :]
    number = (len(stream) - 1) // length
    starts = rng.permutation(number) * length
    windows: Ids = stream[starts[:, None] + np.arange(length + 1)]
    return windows


def batches(
    pool: dict[str, list[Ids]], separator: int, *, length: int, rows: int, seed: int, skip: int
) -> Iterator[Ids]:
    """Yield [rows, length + 1] batches for ever, starting after the first `skip` batches."""
    for epoch in count():
        windows = epoch_windows(pool, separator, length, seed, epoch)
        number = len(windows) // rows
        for i in range(min(skip, number), number):
            yield windows[i * rows : (i + 1) * rows]
        skip = max(0, skip - number)
