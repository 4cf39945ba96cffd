"""What a decoder session is: rows in, scores out, its own key-value cache.

Owns the seam between whoever schedules tokens (engine, measuring) and ONNX Runtime. Knows nothing
of requests, sampling or text. Two implementations: ``artifacts.packed_session`` (ragged rows in
one run, cache in place) and ``artifacts.plain_session`` (one row after another).

The packed graph's inputs, with ``n`` live tokens over ``rows`` adjacent slots, ``width`` the
longest row and ``m`` wanted logits:

===================== ================== ========================================================
``input_ids``         (1, n) int64       live tokens, row after row
``position_ids``      (1, n) int64       only if the architecture reads positions outside attention
``pad_index``         (rows, width, 2) int64 (0, packed index) of each row's tokens, 0 where padded
``unpad_index``       (1, n, 2) int64    (row, column) of each packed token
``query_seqlens``     (rows,) int32      tokens of each row in this step, 0 = idle
``seqlens_k``         (rows,) int32      row length after this step - 1, at least 0
``total_sequence_length`` () int32       longest row length after this step
``logit_positions``   (m,) int64         packed indices whose logits are wanted
``sampled_rows``      (s,) int64         which of the wanted have probabilities, 0..m
``inverse_temperatures`` (s, 1) float32  1 / temperature of each of these
``past_key_values.i.key|value`` (rows, kv_heads, max_length, head_dim) float32 or int8 (whose
scales the graph holds), and the same memory again as the outputs ``present.i.key|value``
===================== ================== ========================================================

The outputs are named and shaped as the arrays of ``artifacts.scores.Scores``, with a leading 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from artifacts.manifest import Forms
from artifacts.scores import Scores


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step.

    Attributes:
        slot: Which cache slot it lives in.
        start: Tokens of this slot that the cache already holds; tokens are appended from there.
        tokens: ``(n,)`` int64, n >= 1.
        logits: Of how many of the last tokens the logits are wanted, 0..n.
        temperature: At which probabilities are wanted too; 0 = nowhere.
        sampled: Behind how many of the last tokens they are wanted, 1..logits.
    """

    slot: int
    start: int
    tokens: NDArray[np.int64]
    logits: int
    temperature: float = 0.0
    sampled: int = 1


def temperatures_of(rows: Sequence[Row]) -> list[float]:
    """The temperature of every wanted position; 0 where no probabilities are."""
    temperatures: list[float] = []
    for row in rows:
        sampled = min(row.sampled, row.logits)
        temperatures += [0.0] * (row.logits - sampled) + [row.temperature] * sampled
    return temperatures


class DecoderSession(Protocol):
    """A loaded artifact with a cache of ``slots`` sequences. Not thread-safe but ``terminate``."""

    slots: int
    max_length: int
    vocab_size: int
    kv_bytes_per_token: int
    forms: Forms | None
    """Where its weights are there twice: tokens may be computed by either form."""

    def step(self, rows: Sequence[Row]) -> Scores:
        """Append each row's tokens to its slot and compute.

        Rows name distinct slots. Slots that are not named are left untouched.

        Returns:
            Of ``sum of row.logits`` positions, row after row in the order given; valid until the
            next step, and the reader's to overwrite.

        Raises:
            SessionError: ONNX Runtime failed; the cache is no longer to be trusted.
            StepTerminatedError: ``terminate`` was called.
        """
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot's cache over another's."""
        ...

    def release(self, slot: int, keep: int = 0) -> None:
        """Give back the memory of a slot's cache beyond its first ``keep`` tokens."""
        ...

    def terminate(self) -> None:
        """End the running step from another thread, if there is one."""
        ...
