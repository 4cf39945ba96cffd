"""The text that a student is trained on, in windows of equally many tokens.

Owns its choice (the calibration text, topped up with or replaced by what the original writes
itself), the part of it that is held out to judge by, and the keeping of what the original wrote: in
shards, so that larger amounts begin with the smaller ones and a killed build goes on. Nothing of
what quality is measured on is among it. Knows nothing of training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.digest import sha256_json
from artifacts.manifest import StageRecord
from optimizers.calibration import FEWEST, Calibration
from optimizers.errors import TextUseError
from optimizers.recipe import libraries
from optimizers.results import Made, Results
from optimizers.sources import Source
from optimizers.stage import Report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HOLD_OUT = 8  # every eighth document is held out, or the last eighth of each of few
MOST_HELD_OUT = 24  # windows, or judging costs more than training
SHARD = 64  # windows that the original writes side by side
_SEED = 20_261_125  # another than calibration's and evaluation's
_FILE = "tokens.npy"


@dataclass(frozen=True, slots=True)
class Split:
    """Windows to train on, each to be seen equally often, and windows to judge by."""

    train: tuple[NDArray[np.int64], ...]
    held_out: tuple[NDArray[np.int64], ...]


class TrainingText:
    """The text of one build."""

    def __init__(self, original: Source, calibration: Calibration, results: Results) -> None:
        self._original = original
        self._calibration = calibration
        self._results = results

    def split(
        self,
        module: Any,
        *,
        least: int,
        most: int,
        window: int,
        is_sampled: bool,
        report: Report,
    ) -> Split:
        """Give windows to train on, and some more to judge by.

        Args:
            module: The original model, which writes what is missing.
            least: Windows to train on that there must be.
            most: Windows to train on that are enough.
            window: Tokens of a window.
            is_sampled: Whether the original writes all of the text.
            report: Hears how far the writing is.

        Raises:
            TextUseError: The calibration text cannot be used.
        """
        documents = None if is_sampled else self._calibration.documents()
        if documents is None:
            count = min(max(FEWEST, least // HOLD_OUT), MOST_HELD_OUT)
            written = self._written(module, least + count, window, report)
            return Split(tuple(written[count:]), tuple(written[:count]))
        separator = end_of_text(module)
        vocabulary = int(module.get_output_embeddings().weight.shape[0])
        train, held_out = (
            pack(part, separator, window=window, vocabulary=vocabulary)
            for part in parted(documents)
        )
        if len(train) + len(held_out) < FEWEST or not held_out:
            raise TextUseError(
                f"The calibration text has {len(train) + len(held_out)} passages of {window} "
                f"tokens; at least {FEWEST} are needed to train on.",
                path="calibration.text",
                remedy="Give more text, or set text: sampled in this stage.",
            )
        if len(train) < least:
            train += self._written(module, least - len(train), window, report)
        return Split(tuple(train[:most]), tuple(held_out[:MOST_HELD_OUT]))

    def _written(
        self, module: Any, count: int, window: int, report: Report
    ) -> list[NDArray[np.int64]]:
        """The first windows of all that the original would write, made now or found."""
        import numpy as np

        found: list[NDArray[np.int64]] = []
        while len(found) < count:
            report(0.1 * len(found) / count, "writing a text to train on")
            shard = len(found) // SHARD
            folder = self._shard(module, shard, window)
            found += list(np.load(folder / _FILE, allow_pickle=False))
        return found[:count]

    def _shard(self, module: Any, shard: int, window: int) -> Path:
        import numpy as np

        from optimizers.torch_models import sample_text

        key = sha256_json(
            {
                "training text": self._original.model.revision,
                "shard": shard,
                "window": window,
                "seed": _SEED,
                "libraries": libraries("torch"),
            }
        )

        def write(target: Path) -> Made:
            began = time.monotonic()
            text = sample_text(module, documents=SHARD, length=window, seed=_SEED + shard)
            np.save(target / _FILE, np.asarray(text, np.int64))
            seconds = time.monotonic() - began
            return Made(StageRecord(stage="text", form="torch", seconds=seconds, size_bytes=0))

        found = self._results.find(key) or self._results.make(key, write, keep=True)
        return found.folder


def parted(documents: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Documents to train on and to judge by: every eighth, or the last eighth of each of few."""
    if len(documents) < HOLD_OUT:
        cuts = [len(document) - len(document) // HOLD_OUT for document in documents]
        pairs = list(zip(documents, cuts, strict=True))
        return [list(one[:cut]) for one, cut in pairs], [list(one[cut:]) for one, cut in pairs]
    held_out = [list(one) for one in documents[HOLD_OUT - 1 :: HOLD_OUT]]
    return [
        list(one) for index, one in enumerate(documents) if index % HOLD_OUT != HOLD_OUT - 1
    ], held_out


def pack(
    documents: Sequence[Sequence[int]], separator: Sequence[int], *, window: int, vocabulary: int
) -> list[NDArray[np.int64]]:
    """Put documents one after another and cut them into windows, so that short ones count too.

    Args:
        documents: Token ids.
        separator: What comes behind each document.
        window: Tokens of a window; what is left over at the end is not used.
        vocabulary: A window with ids from here on is left out.
    """
    import numpy as np

    joined = np.asarray([token for one in documents for token in (*one, *separator)], np.int64)
    count = len(joined) // window
    rows = joined[: count * window].reshape(count, window)
    return list(rows[rows.max(axis=1, initial=0) < vocabulary])


def end_of_text(module: Any) -> tuple[int, ...]:
    """The token that ends a document, if the model has one."""
    end = module.config.get_text_config().eos_token_id
    if isinstance(end, (list, tuple)):
        return tuple(end[:1])
    return () if end is None else (int(end),)
