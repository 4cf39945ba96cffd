"""A decoder session over the packed graph: ragged rows in one run, cache in place.

Owns the ONNX Runtime session, its bindings and the step's index arithmetic (see
``artifacts.session`` for the graph's inputs). Dense layers see live tokens only; attention sees
the adjacent slots that a step spans, idle ones costing nothing. Knows nothing of requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import BugError, SessionError, StepTerminatedError
from artifacts.kv_cache import KvCache
from artifacts.manifest import GraphSpec
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


class PackedSession:
    """Implements ``DecoderSession`` for graphs of the ``packed`` form."""

    def __init__(
        self,
        model: Path,
        graph: GraphSpec,
        *,
        slots: int,
        max_length: int,
        threads: Threads | int | None = None,
    ) -> None:
        if graph.form != "packed":
            raise BugError(f"A {graph.form} graph cannot run in a packed session.")
        if "sampled_rows" not in graph.inputs:
            raise SessionError(
                "The artifact was built by an older version and gives logits alone.",
                remedy="Build the variant again.",
            )
        if not 1 <= max_length <= graph.max_length:
            raise SessionError(
                f"max_length {max_length} does not lie within 1 and {graph.max_length}.",
                remedy="Set engine.max_length to what the model supports.",
            )
        self.slots = slots
        self.max_length = max_length
        self.vocab_size = graph.vocab_size
        resolved = threads if isinstance(threads, Threads) else Threads(count=threads)
        self._runtime = open_runtime(model, resolved)
        # ONNX Runtime wants room for the widest row's tokens behind every row's past, though it
        # never writes there. Twice the length is always enough, and untouched memory is free.
        self._cache = KvCache(graph.layers, slots=slots, max_length=2 * max_length)
        self.kv_bytes_per_token = self._cache.bytes_per_token
        self._lengths = np.zeros(slots, np.int32)
        self._bindings: OrderedDict[tuple[int, int], _Binding] = OrderedDict()
        self._inputs = frozenset(graph.inputs)
        self._run_options: Any = None
        self._terminated = False
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
        self._scores = empty_scores(slots, graph.vocab_size, sampled=slots)
        self._arange = np.arange(max_length, dtype=np.int64)

    @property
    def cache(self) -> KvCache:
        """What the steps have written, for whoever calibrates on it; read-only."""
        return self._cache

    def step(self, rows: Sequence[Row]) -> Scores:
        """See ``DecoderSession.step``."""
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
            if length > self.max_length or query[row.slot - low]:
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
        self._run(self._bind(low, high, shape))
        return self._scores.part(logits, sampled)

    def copy(self, source: int, target: int, length: int) -> None:
        """See ``DecoderSession.copy``."""
        self._cache.copy(source, target, length)
        self._lengths[target] = length

    def release(self, slot: int, keep: int = 0) -> None:
        """See ``DecoderSession.release``."""
        self._cache.release(slot, keep)
        self._lengths[slot] = keep

    def terminate(self) -> None:
        """See ``DecoderSession.terminate``."""
        self._terminated = True
        options = self._run_options
        if options is not None:
            options.terminate = True

    def _run(self, binding: _Binding) -> None:
        import onnxruntime as ort

        self._terminated = False
        self._run_options = ort.RunOptions()
        try:
            self._runtime.run_with_iobinding(binding.io, self._run_options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            if self._terminated:
                raise StepTerminatedError("The step was terminated.") from error
            raise SessionError(f"ONNX Runtime failed in a step: {error}") from error
        finally:
            self._run_options = None

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
            self._scores = empty_scores(logits, self.vocab_size, sampled=logits)
            self._wanted = np.zeros(logits, np.int64)
            self._sampled = np.zeros(logits, np.int64)
            self._inverse = np.zeros((logits, 1), np.float32)
            grown = True
        longest = max(self.max_length, padded, tokens)
        if len(self._arange) < longest:
            self._arange = np.arange(longest, dtype=np.int64)
        if grown:
            for binding in self._bindings.values():
                binding.bound = None
