"""The inputs with which an ONNX decoder reads whole documents from their beginning.

Owns how documents become a run: several side by side in the packed form (see
``artifacts.session``), one at a time in the plain one; caches are empty, and every position's
logits are wanted. Knows nothing of what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.manifest import GraphSpec

_TOKENS_AT_ONCE = 2048  # enough for fast products, and a few megabytes of each activation

Inputs = dict[str, NDArray[Any]]
"""By name; only those that every decoder may have, so some may have to be left out."""


def inputs_of_runs(graph: GraphSpec, documents: Sequence[NDArray[np.int64]]) -> list[Inputs]:
    """Cut a text into runs.

    Args:
        graph: How the decoder is run.
        documents: Token ids, all of one length.
    """
    length = documents[0].size
    rows = max(1, _TOKENS_AT_ONCE // length) if graph.form == "packed" else 1
    return [
        _packed(np.stack(documents[start : start + rows]))
        if graph.form == "packed"
        else _plain(documents[start])
        for start in range(0, len(documents), rows)
    ]


def caches(graph: GraphSpec, inputs: Inputs) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The empty caches of a run, made anew for each, since they are large."""
    rows, room = 1, 0
    if graph.form == "packed":
        rows, length = inputs["pad_index"].shape[:2]
        room = 2 * length  # see ``artifacts.packed_session``
    for layer in graph.layers:
        yield layer.past_key, np.zeros((rows, layer.heads, room, layer.key_dim), np.float32)
        yield layer.past_value, np.zeros((rows, layer.heads, room, layer.value_dim), np.float32)


def _packed(ids: NDArray[np.int64]) -> Inputs:
    rows, length = ids.shape
    places = np.indices(ids.shape)  # (2, rows, length)
    packed = np.arange(ids.size, dtype=np.int64)
    return {
        "input_ids": ids.reshape(1, -1),
        "position_ids": places[1].reshape(1, -1).astype(np.int64),
        "pad_index": np.stack([np.zeros_like(packed), packed], axis=-1).reshape(rows, length, 2),
        "unpad_index": places.reshape(2, -1).T[None].astype(np.int64),
        "query_seqlens": np.full(rows, length, np.int32),
        "seqlens_k": np.full(rows, length - 1, np.int32),
        "total_sequence_length": np.array(length, np.int32),
        "logit_positions": packed,
        "sampled_rows": np.zeros(0, np.int64),
        "inverse_temperatures": np.zeros((0, 1), np.float32),
    }


def _plain(ids: NDArray[np.int64]) -> Inputs:
    return {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, ids.size), np.int64),
        "position_ids": np.arange(ids.size, dtype=np.int64)[None],
    }
