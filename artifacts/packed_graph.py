"""One graph of the packed form, loaded: rows in, the cache extended in place, scores out.

Owns an ONNX Runtime session, its bindings and a step's index arithmetic (see ``artifacts.session``
for the graph's inputs). Dense layers see live tokens only; attention sees the adjacent slots that a
step spans, idle ones costing nothing. A graph without logits only extends the cache. Knows nothing
of who else works on that cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import BugError
from artifacts.kv_cache import KvCache
from artifacts.runtime import Threads, open_runtime
from artifacts.scores import Scores, empty_scores
from artifacts.session import Row

_BINDINGS = 64  # spans of slots whose bindings are kept


class _Shape(NamedTuple):
    """What a step's inputs and outputs are as large as."""

    tokens: int
    width: int
    logits: int
    sampled: int


class _Binding:
    """ONNX Runtime's binding for one span of slots, and the shape it is bound for."""

    __slots__ = ("bound", "io")

    def __init__(self, io: Any) -> None:
        self.io = io
        self.bound: _Shape | None = None


class PackedGraph:
    """A packed graph over a cache that others may write as well.

    Args:
        model: The file.
        cache: Where keys and values of all slots lie.
        lengths: (slots,) int32, tokens of each slot that the cache holds; kept up to date here.
        max_length: Tokens that a slot may come to hold.
        vocab_size: Width of the logits, where it has any.
        threads: Who computes.
        profile_into: What the name of a profile by ONNX Runtime begins with; None for no profile.

    Raises:
        SessionError: ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        model: Path,
        cache: KvCache,
        lengths: NDArray[np.int32],
        *,
        max_length: int,
        vocab_size: int,
        threads: Threads,
        profile_into: Path | None = None,
    ) -> None:
        self._runtime = open_runtime(model, threads, profile_into=profile_into)
        self._cache = cache
        self._lengths = lengths
        self._max_length = max_length
        self._vocab_size = vocab_size
        slots = cache.slots
        self._bindings: OrderedDict[tuple[int, int], _Binding] = OrderedDict()
        self._inputs = frozenset(value.name for value in self._runtime.get_inputs())
        self._outputs = frozenset(value.name for value in self._runtime.get_outputs())
        # Step inputs are written in place: a step of the shape before binds nothing again.
        self._query_seqlens = np.zeros(slots, np.int32)
        self._seqlens_k = np.zeros(slots, np.int32)
        self._total = np.zeros(1, np.int32)
        self._ids = np.zeros(slots, np.int64)
        self._positions = np.zeros(slots, np.int64)
        self._unpad = np.zeros((slots, 2), np.int64)
        self._pad = np.zeros((slots, 2), np.int64)  # whose first numbers are always 0
        self._wanted = np.zeros(slots, np.int64)
        self._sampled = np.zeros(slots, np.int64)
        self._inverse = np.zeros((slots, 1), np.float32)
        self._scores = empty_scores(slots, vocab_size, sampled=slots)
        self._arange = np.arange(max_length, dtype=np.int64)

    def run(self, rows: Sequence[Row], options: Any) -> Scores:
        """Append each row's tokens to its slot and compute.

        Args:
            rows: Of distinct slots.
            options: ONNX Runtime's, by which the run may be ended.

        Returns:
            Of the wanted positions, row after row; valid until the next run.
        """
        low = min(row.slot for row in rows)
        high = max(row.slot for row in rows) + 1
        tokens = sum(len(row.tokens) for row in rows)
        width = max(len(row.tokens) for row in rows)
        logits = sum(row.logits for row in rows)
        span = high - low
        self._grow(tokens=tokens, padded=span * width, logits=max(logits, 1))

        query = self._query_seqlens[:span]
        query[:] = 0
        pad = self._pad[: span * width, 1].reshape(span, width)
        if len(rows) < span or tokens < len(rows) * width:
            pad[:] = 0
        packed = wanted = sampled = 0
        for row in rows:
            count = len(row.tokens)
            end = packed + count
            length = row.start + count
            if length > self._max_length or query[row.slot - low]:
                raise BugError(f"Row of slot {row.slot} is too long ({length}) or given twice.")
            line = row.slot - low
            self._ids[packed:end] = row.tokens
            indices = self._arange[packed:end]
            self._positions[packed:end] = self._arange[row.start : length]
            pad[line, :count] = indices
            self._unpad[packed:end, 0] = line
            self._unpad[packed:end, 1] = self._arange[:count]
            self._wanted[wanted : wanted + row.logits] = indices[count - row.logits :]
            query[line] = count
            self._lengths[row.slot] = length
            self._cache.wrote(row.slot, length)
            packed = end
            wanted += row.logits
            if row.temperature and row.logits:
                behind = slice(sampled, sampled + row.sampled)
                self._sampled[behind] = self._arange[wanted - row.sampled : wanted]
                self._inverse[behind] = 1.0 / row.temperature
                sampled += row.sampled
        # An idle row must name a length that is valid, and is neither read nor written.
        np.maximum(self._lengths[low:high] - 1, 0, out=self._seqlens_k[:span])
        self._total[0] = self._lengths[low:high].max()
        if logits == 0:
            self._wanted[0] = 0  # the graph wants one; nobody reads it
        shape = _Shape(tokens, width, max(logits, 1), sampled)
        self._runtime.run_with_iobinding(self._bind(low, high, shape).io, options)
        return self._scores.part(logits, sampled)

    def end_profile(self) -> Path:
        """Write the profile of all runs so far: a list of events as JSON."""
        return Path(self._runtime.end_profiling())

    def _bind(self, low: int, high: int, shape: _Shape) -> _Binding:
        binding = self._bindings.get((low, high))
        if binding is None:
            binding = _Binding(self._runtime.io_binding())
            self._bind_cache(binding.io, low, high)
            self._bindings[low, high] = binding
            if len(self._bindings) > _BINDINGS:
                self._bindings.popitem(last=False)
        else:
            self._bindings.move_to_end((low, high))
        if binding.bound != shape:
            self._bind_step(binding.io, high - low, shape)
            binding.bound = shape
        return binding

    def _bind_cache(self, io: Any, low: int, high: int) -> None:
        for tensor in self._cache.tensors:
            shape = (high - low, *tensor.array.shape[1:])
            address = tensor.array.ctypes.data + low * tensor.slot_bytes
            dtype = tensor.array.dtype.type
            io.bind_input(tensor.past, "cpu", 0, dtype, shape, address)
            io.bind_output(tensor.present, "cpu", 0, dtype, shape, address)

    def _bind_step(self, io: Any, span: int, shape: _Shape) -> None:
        tokens, width, logits, sampled = shape
        values: tuple[tuple[str, NDArray[Any], tuple[int, ...]], ...] = (
            ("input_ids", self._ids, (1, tokens)),
            ("position_ids", self._positions, (1, tokens)),
            ("pad_index", self._pad, (span, width, 2)),
            ("unpad_index", self._unpad, (1, tokens, 2)),
            ("query_seqlens", self._query_seqlens, (span,)),
            ("seqlens_k", self._seqlens_k, (span,)),
            ("total_sequence_length", self._total, ()),
            ("logit_positions", self._wanted, (logits,)),
            ("sampled_rows", self._sampled, (sampled,)),
            ("inverse_temperatures", self._inverse, (sampled, 1)),
        )
        for name, array, dims in values:
            if name in self._inputs:
                io.bind_input(name, "cpu", 0, array.dtype.type, dims, array.ctypes.data)
        for name, array in self._scores.part(logits, sampled).named():
            if name in self._outputs:
                output = (1, *array.shape)
                io.bind_output(name, "cpu", 0, array.dtype.type, output, array.ctypes.data)

    def _grow(self, *, tokens: int, padded: int, logits: int) -> None:
        """Make the step's buffers at least this large; new memory must be bound anew."""
        grown = False
        if len(self._ids) < tokens:
            self._ids = np.zeros(tokens, np.int64)
            self._positions = np.zeros(tokens, np.int64)
            self._unpad = np.zeros((tokens, 2), np.int64)
            grown = True
        if len(self._pad) < padded:
            self._pad = np.zeros((padded, 2), np.int64)
            grown = True
        if len(self._scores.logits) < logits:
            # Probabilities as many as logits: memory that no step writes is never committed.
            self._scores = empty_scores(logits, self._vocab_size, sampled=logits)
            self._wanted = np.zeros(logits, np.int64)
            self._sampled = np.zeros(logits, np.int64)
            self._inverse = np.zeros((logits, 1), np.float32)
            grown = True
        longest = max(padded, tokens)
        if len(self._arange) < longest:
            self._arange = np.arange(longest, dtype=np.int64)
        if grown:
            for binding in self._bindings.values():
                binding.bound = None
