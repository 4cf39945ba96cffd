"""The float32 graph as a function of its weights and of what flows through it.

One session serves any number of trials: every large constant is an input, bound to where the
weights lie on disk, so that a trial replaces a matrix without loading the model again; and values
inside the graph can be outputs. Knows nothing of what is tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.manifest import GraphSpec
from optimizers import linears
from optimizers.errors import StageError

_LARGE = 1024  # elements from which on a constant is given with each run
_UNTRIED = "Choose bits and accuracy_level yourself."

Weights = Mapping[str, NDArray[Any]]


class GraphProbe:
    """A session over the packed graph in ``folder`` that runs one document at a time."""

    def __init__(
        self,
        folder: Path,
        graph: GraphSpec,
        *,
        watched: Sequence[str] = (),
        threads: int | None = None,
    ) -> None:
        if graph.form != "packed":
            raise StageError(
                "Graphs of Optimum's form cannot be tried out layer by layer.",
                remedy=_UNTRIED,
            )
        self.vocab_size = graph.vocab_size
        self._graph = graph
        self._watched = tuple(watched)
        model = linears.load(folder)  # a copy of its own, since it is edited
        self._weights = _as_inputs(model)
        values = {value.name: value for node in model.graph for value in node.outputs}
        model.graph.outputs[:] = [values[name] for name in ("logits", *self._watched)]
        self._session = _open(model, threads)

    def run(
        self, tokens: NDArray[np.int64], wanted: NDArray[np.int64], replaced: Weights
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """Run a document (n,).

        Args:
            tokens: Its token ids.
            wanted: Positions (m,) whose logits are given.
            replaced: Weights to use instead of the graph's own, as they lie in the graph.

        Returns:
            Logits (m, vocab), and each watched value as (n, columns).
        """
        import onnxruntime as ort

        inputs = self._inputs(tokens, wanted)
        binding = self._session.io_binding()
        for name, array in {**inputs, **self._weights, **replaced}.items():
            dtype, address = array.dtype.type, array.ctypes.data
            binding.bind_input(name, "cpu", 0, dtype, array.shape, address)
        for name in ("logits", *self._watched):
            binding.bind_output(name)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise StageError(f"ONNX Runtime failed in a trial: {error}", remedy=_UNTRIED) from error
        logits, *seen = (ort.OrtValue.numpy(value) for value in binding.get_outputs())
        columns = {
            name: value.reshape(-1, value.shape[-1])
            for name, value in zip(self._watched, seen, strict=True)
        }
        return logits[0], columns

    def _inputs(
        self, tokens: NDArray[np.int64], wanted: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """The packed form of one row from its beginning, with a cache that holds just it."""
        count = tokens.size
        positions = np.arange(count, dtype=np.int64)
        index = np.stack([np.zeros_like(positions), positions], axis=-1)[None]
        given: dict[str, NDArray[Any]] = {
            "input_ids": np.ascontiguousarray(tokens[None]),
            "position_ids": positions[None],
            "pad_index": index,
            "unpad_index": index,
            "query_seqlens": np.array([count], np.int32),
            "seqlens_k": np.array([count - 1], np.int32),
            "total_sequence_length": np.array(count, np.int32),
            "logit_positions": wanted,
            "sampled_rows": np.zeros(0, np.int64),
            "inverse_temperatures": np.zeros((0, 1), np.float32),
        }
        for layer in self._graph.layers:
            for name, dim in (
                (layer.past_key, layer.key_dim),
                (layer.past_value, layer.value_dim),
            ):
                given[name] = np.zeros((1, layer.heads, count, dim), np.float32)
        return {name: given[name] for name in self._graph.inputs}


def _as_inputs(model: Any) -> dict[str, NDArray[Any]]:
    """Turn the large constants of a model into inputs; gives their values, left where they are."""
    found: dict[str, NDArray[Any]] = {}
    for name, value in list(model.graph.initializers.items()):
        constant = value.const_value
        if constant.size < _LARGE:
            continue
        found[name] = constant.numpy()
        del model.graph.initializers[name]
        value.const_value = None
        model.graph.inputs.append(value)
    return found


def _open(model: Any, threads: int | None) -> Any:
    import onnx_ir
    import onnxruntime as ort
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    for _, value in list(model.graph.initializers.items()):
        # What is left is small; within the model, since the session is given no folder.
        array = value.const_value.numpy()
        value.const_value = onnx_ir.tensor(array, name=value.name)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    if threads is not None:
        options.intra_op_num_threads = threads
    content = onnx_ir.to_proto(model).SerializeToString()
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise StageError(
            f"ONNX Runtime cannot open the graph for trials: {error}", remedy=_UNTRIED
        ) from error
