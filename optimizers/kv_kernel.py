"""Checks ONNX Runtime's attention over an int8 cache against its definition, before it is trusted.

Owns a run of one attention node by itself (ragged rows in chunks, idle ones, in place, past its
window), the same in numpy over the dequantized cache, and the comparison. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizers.attention import Attention, Rotary
from optimizers.errors import StageError
from optimizers.kv_graph import set_cache
from optimizers.kv_scales import LARGEST, CacheScales

TOLERANCE = 1e-4  # of the largest output; the kernel rounds nothing but what it writes
_STEPS = ((9, 1, 0, 40), (1, 1, 1, 1), (70, 0, 3, 1), (0, 1, 1, 1), (1, 30, 1, 0))
_ROWS = len(_STEPS[0])
_CAPACITY = 256  # tokens; twice the longest row, as sessions have it
_WINDOW = 16  # a longer one is cut to this, so that the steps cross it
_SEED = 20_261_201


def check_kernel(attention: Attention, scales: CacheScales) -> float:
    """Run one attention by itself; gives the largest error as a share of the largest output.

    Raises:
        StageError: The kernel refuses it, or computes something else.
    """
    node = _NodeRun(attention, scales)
    rng = np.random.default_rng(_SEED)
    worst = largest = 0.0
    for counts in _STEPS:
        drawn = node.draw(rng, max(counts))
        given = node.step(drawn, counts)
        for row, count in enumerate(counts):
            if count:
                wanted = node.expected(drawn, row, count)
                worst = max(worst, float(np.abs(given[row, :count] - wanted).max()))
                largest = max(largest, float(np.abs(wanted).max()))
    error = worst / largest
    if not error <= TOLERANCE:  # also when it is not a number
        raise StageError(
            f"ONNX Runtime's attention with an int8 cache is off by {error:.2g} of its scale for "
            f"{attention.told()}.",
            path="method",
            remedy="Leave kv_cache out for this model.",
        )
    return error


class _NodeRun:
    """One attention node in a session of its own, with its cache and the truth beside it."""

    def __init__(self, attention: Attention, scales: CacheScales) -> None:
        if attention.window is not None:
            attention = replace(attention, window=min(attention.window, _WINDOW))
        if (rotary := attention.rotary) is not None:
            # Repeated where they are shorter than the steps: any angles will do.
            shape = (_CAPACITY, rotary.cos.shape[1])
            cos, sin = np.resize(rotary.cos, shape), np.resize(rotary.sin, shape)
            attention = replace(attention, rotary=replace(rotary, cos=cos, sin=sin))
        self._attention = attention
        self._scales = scales
        self._lengths = np.zeros(_ROWS, np.int32)
        sizes = (_ROWS, attention.kv_heads, _CAPACITY, attention.head_dim)
        self._cache = {name: np.zeros(sizes, np.int8) for name in ("keys", "values")}
        self._runtime = _open(attention, scales)

    def draw(self, rng: np.random.Generator, width: int) -> tuple[NDArray[np.float32], ...]:
        """Queries, keys and values (rows, width, heads, dim); some leave the scales' range."""
        one, dim = self._attention, self._attention.head_dim
        queries = rng.standard_normal((_ROWS, width, one.heads, dim))
        spread = LARGEST / 3
        keys = rng.standard_normal((_ROWS, width, one.kv_heads, dim)) * self._scales.keys * spread
        values = (
            rng.standard_normal((_ROWS, width, one.kv_heads, dim)) * self._scales.values * spread
        )
        # Scores of a few units, whatever the scales are: neither uniform nor a single token.
        queries *= 2.0 / max(float(np.linalg.norm(keys, axis=-1).mean()) * one.scale, 1e-30)
        return tuple(array.astype(np.float32) for array in (queries, keys, values))

    def step(
        self, drawn: tuple[NDArray[np.float32], ...], counts: Sequence[int]
    ) -> NDArray[np.float32]:
        """Append to each row and attend, in place: (rows, width, heads, dim)."""
        width = drawn[0].shape[1]
        self._lengths += np.array(counts, np.int32)
        queries, keys, values = (array.reshape(_ROWS, width, -1) for array in drawn)
        packed = np.ascontiguousarray(np.concatenate([queries, keys, values], axis=-1))
        given = np.zeros_like(drawn[0])
        inputs: dict[str, NDArray[Any]] = {
            "packed": packed,
            "query_seqlens": np.array(counts, np.int32),
            "seqlens_k": np.maximum(self._lengths - 1, 0).astype(np.int32),
            "total": np.array(self._lengths.max(), np.int32),
            **{f"past_{name}": array for name, array in self._cache.items()},
        }
        outputs: dict[str, NDArray[Any]] = {
            "attended": given.reshape(_ROWS, width, -1),
            **{f"present_{name}": array for name, array in self._cache.items()},
        }
        binding = self._runtime.io_binding()
        for name, array in inputs.items():
            dtype = array.dtype.type
            binding.bind_input(name, "cpu", 0, dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            dtype = array.dtype.type
            binding.bind_output(name, "cpu", 0, dtype, array.shape, array.ctypes.data)
        try:
            self._runtime.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise _refused(self._attention, error) from error
        return given

    def expected(
        self, drawn: tuple[NDArray[np.float32], ...], row: int, count: int
    ) -> NDArray[np.float64]:
        """What one row's last ``count`` tokens attend to, by the definition.

        Raises:
            StageError: The cache does not hold the rounded keys and values.
        """
        one, end = self._attention, int(self._lengths[row])
        queries, keys, values = (array[row, :count].swapaxes(0, 1) for array in drawn)
        positions = np.arange(end - count, end)
        self._check_written("keys", row, positions, rotate(keys, positions, one.rotary))
        self._check_written("values", row, positions, values)
        return attend(
            one,
            rotate(queries, positions, one.rotary),
            self._cache["keys"][row, :, :end] * self._scales.keys[:, None, :],
            self._cache["values"][row, :, :end] * self._scales.values[:, None, :],
        ).swapaxes(0, 1)

    def _check_written(
        self, name: str, row: int, positions: NDArray[np.int64], states: NDArray[np.floating]
    ) -> None:
        steps = getattr(self._scales, name)[:, None, :]
        off = np.abs(self._cache[name][row][:, positions] - states / steps)
        inside = np.abs(states / steps) < LARGEST
        # Half a step, and what float32 adds to a number of up to 127 steps.
        if np.any(off[inside] > 0.5 + 1e-3):
            raise StageError(
                f"ONNX Runtime writes other {name} into an int8 cache for "
                f"{self._attention.told()}: off by {off[inside].max():.2g} steps.",
                path="method",
                remedy="Leave kv_cache out for this model.",
            )


def rotate(
    states: NDArray[np.float32], positions: NDArray[np.int64], rotary: Rotary | None
) -> NDArray[np.float64]:
    """Turn states (heads, tokens, dim) as their positions say."""
    turned = states.astype(np.float64)
    if rotary is not None:
        first, second = rotary.pairs()
        cos, sin = rotary.cos[positions], rotary.sin[positions]
        a, b = turned[..., first].copy(), turned[..., second].copy()
        turned[..., first] = a * cos - b * sin
        turned[..., second] = b * cos + a * sin
    return turned


def attend(
    attention: Attention,
    queries: NDArray[np.float64],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Causal attention, by the definition.

    Args:
        attention: Its scale, soft cap and window.
        queries: Of the last n tokens, (heads, n, dim).
        keys: Of all T tokens, (kv_heads, T, dim).
        values: The same.
    """
    count, length = queries.shape[1], keys.shape[1]
    group = attention.heads // attention.kv_heads
    keys, values = np.repeat(keys, group, axis=0), np.repeat(values, group, axis=0)
    scores = queries @ keys.swapaxes(1, 2).astype(np.float64) * attention.scale
    if attention.softcap:
        scores = attention.softcap * np.tanh(scores / attention.softcap)
    behind = np.arange(length - count, length)[:, None] - np.arange(length)
    seen = behind >= 0
    if attention.window is not None:
        seen &= behind < attention.window
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    attended: NDArray[np.float64] = weights @ values
    return attended


def _open(attention: Attention, scales: CacheScales) -> Any:
    """A session of nothing but this node, with packed projections and an int8 cache."""
    import onnx_ir as ir
    import onnxruntime as ort

    def value(name: str, dtype: Any) -> Any:
        return ir.Value(name=name, type=ir.TensorType(dtype))

    of_float, of_int32 = ir.DataType.FLOAT, ir.DataType.INT32
    past_keys, past_values = (value(f"past_{n}", of_float) for n in ("keys", "values"))
    packed, lengths = value("packed", of_float), value("seqlens_k", of_int32)
    total, counts = value("total", of_int32), value("query_seqlens", of_int32)
    total.shape = ir.Shape([])
    attributes: dict[str, Any] = {
        "num_heads": attention.heads,
        "kv_num_heads": attention.kv_heads,
        "scale": attention.scale,
        "softcap": attention.softcap,
        "local_window_size": attention.window or -1,
    }
    tables: dict[str, NDArray[np.float32]] = {}
    if (rotary := attention.rotary) is not None:
        attributes |= {"do_rotary": 1, "rotary_interleaved": int(rotary.interleaved)}
        tables = {"cos": rotary.cos, "sin": rotary.sin}
    weights = {
        name: ir.Value(name=name, const_value=ir.tensor(table, name=name))
        for name, table in tables.items()
    }
    inputs = [packed, None, None, past_keys, past_values, lengths, total]
    inputs += [weights.get("cos"), weights.get("sin"), *[None] * 7, counts]
    node = ir.node("GroupQueryAttention", inputs, attributes, domain="com.microsoft", num_outputs=3)
    for output, name in zip(
        node.outputs, ("attended", "present_keys", "present_values"), strict=True
    ):
        output.name, output.type = name, ir.TensorType(of_float)
    graph = ir.Graph(
        [packed, past_keys, past_values, lengths, total, counts],
        node.outputs,
        nodes=[node],
        initializers=list(weights.values()),
        opset_imports={"": 21, "com.microsoft": 1},
        name="attention",
    )
    model = ir.Model(graph, ir_version=10)
    set_cache(model, node, scales, "cache")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    content = ir.to_proto(model).SerializeToString()
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise _refused(attention, error) from error


def _refused(attention: Attention, error: Exception) -> StageError:
    return StageError(
        f"ONNX Runtime has no int8 cache for {attention.told()}: {error}",
        path="method",
        remedy="Leave kv_cache out for this model.",
    )
