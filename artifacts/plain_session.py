"""A decoder session over the plain exchange graph: one row after another, cache by value.

The form that Optimum exports (``input_ids``, ``attention_mask``, ``position_ids``, past in, present
out). Slower than the packed form, and the way to serve what only that form can express. Knows
nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import BugError, SessionError, StepTerminatedError
from artifacts.manifest import GraphSpec
from artifacts.runtime import Threads, open_runtime
from artifacts.scores import Scores, score
from artifacts.session import Row, temperatures_of

_ITEM = 4  # bytes of a float32


class PlainSession:
    """Implements ``DecoderSession`` for graphs of the ``plain`` form."""

    def __init__(
        self,
        model: Path,
        graph: GraphSpec,
        *,
        slots: int,
        max_length: int,
        threads: Threads | int | None = None,
    ) -> None:
        if graph.form != "plain":
            raise BugError(f"A {graph.form} graph cannot run in a plain session.")
        if not 1 <= max_length <= graph.max_length:
            raise SessionError(
                f"max_length {max_length} does not lie within 1 and {graph.max_length}.",
                remedy="Set engine.max_length to what the model supports.",
            )
        self.slots = slots
        self.max_length = max_length
        self.vocab_size = graph.vocab_size
        self.forms = graph.forms
        self.kv_bytes_per_token = sum(
            layer.heads * (layer.key_dim + layer.value_dim) * _ITEM for layer in graph.layers
        )
        resolved = threads if isinstance(threads, Threads) else Threads(count=threads)
        self._runtime = open_runtime(model, resolved)
        self._layers = graph.layers
        self._inputs = frozenset(graph.inputs)
        self._presents = [
            name for layer in graph.layers for name in (layer.present_key, layer.present_value)
        ]
        # One list of past tensors (1, heads, length, dim) per slot, in the order of _presents.
        self._past: list[list[NDArray[np.float32]]] = [self._empty() for _ in range(slots)]
        self._run_options: Any = None
        self._terminated = False

    def step(self, rows: Sequence[Row]) -> Scores:
        """See ``DecoderSession.step``."""
        if len({row.slot for row in rows}) < len(rows):
            raise BugError("A slot is given twice in one step.")
        wanted = [self._step_row(row)[len(row.tokens) - row.logits :] for row in rows]
        return score(np.concatenate(wanted), temperatures_of(rows))

    def copy(self, source: int, target: int, length: int) -> None:
        """See ``DecoderSession.copy``."""
        self._past[target] = [np.array(past[:, :, :length]) for past in self._past[source]]

    def release(self, slot: int, keep: int = 0) -> None:
        """See ``DecoderSession.release``."""
        if keep == 0:
            self._past[slot] = self._empty()
        else:
            self._past[slot] = [np.array(past[:, :, :keep]) for past in self._past[slot]]

    def terminate(self) -> None:
        """See ``DecoderSession.terminate``."""
        self._terminated = True
        options = self._run_options
        if options is not None:
            options.terminate = True

    def _empty(self) -> list[NDArray[np.float32]]:
        dims = [
            (layer.heads, dim) for layer in self._layers for dim in (layer.key_dim, layer.value_dim)
        ]
        return [np.zeros((1, heads, 0, dim), np.float32) for heads, dim in dims]

    def _step_row(self, row: Row) -> NDArray[np.float32]:
        """Compute one row; (n, vocab)."""
        count = len(row.tokens)
        length = row.start + count
        if length > self.max_length:
            raise BugError(f"Row of slot {row.slot} is too long ({length}).")
        past = self._past[row.slot]
        if past[0].shape[2] != row.start:
            past = [np.ascontiguousarray(tensor[:, :, : row.start]) for tensor in past]
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": row.tokens.reshape(1, count),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(row.start, length, dtype=np.int64).reshape(1, count),
        }
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}
        names = [name for layer in self._layers for name in (layer.past_key, layer.past_value)]
        feeds.update(zip(names, past, strict=True))
        logits, *present = self._run(feeds)
        self._past[row.slot] = present
        return np.asarray(logits[0], np.float32)

    def _run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        import onnxruntime as ort

        self._terminated = False
        self._run_options = ort.RunOptions()
        try:
            outputs: list[NDArray[np.float32]] = self._runtime.run(
                ["logits", *self._presents], feeds, self._run_options
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            if self._terminated:
                raise StepTerminatedError("The step was terminated.") from error
            raise SessionError(f"ONNX Runtime failed in a step: {error}") from error
        finally:
            self._run_options = None
        return outputs
