"""Writes a graph with its weights beside it, those that variants share in a file of their own.

A store keeps a file once, however many artifacts have it, and the system keeps a mapped file in
memory once. Owns which weights lie in which file. Knows nothing of what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from optimizers.publish import EMBEDDINGS, MODEL, WEIGHTS

INLINE_BYTES = 256  # constants up to this size stay inside the graph
_OWN_FILE_BYTES = 4 << 20  # of what would be shared, at least: a file of less gains nothing
_ALIGNMENT = 64  # bytes; a vector load of a mapped weight never straddles a cache line


def save_graph(
    model: Any,
    folder: Path,
    shared: Iterable[Any],
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write ``model.onnx`` and its weights into a folder; the model is left as it was.

    Args:
        model: An ``onnx_ir.Model``.
        folder: Holds none of these files.
        shared: Of its initializers, those that other variants have as well.
        progress: Told how many of the weights (0..1) are written.
    """
    import onnx_ir
    from onnx_ir import external_data

    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    before = [value.const_value for value in values]
    large = [value for value in values if value.const_value.nbytes > INLINE_BYTES]
    wanted = {id(value) for value in shared}
    own = [value for value in large if id(value) in wanted]
    if sum(value.const_value.nbytes for value in own) < _OWN_FILE_BYTES:
        own = []
    apart = {id(value) for value in own}
    others = [value for value in large if id(value) not in apart]
    share = len(own) / max(len(large), 1)
    try:
        if own:
            move_out(own, folder, EMBEDDINGS, lambda part: _tell(progress, share * part))
        move_out(others, folder, WEIGHTS, lambda part: _tell(progress, share + (1 - share) * part))
        for value in values:
            if value.const_value.nbytes <= INLINE_BYTES and isinstance(
                value.const_value, onnx_ir.ExternalTensor
            ):
                (value.const_value,) = external_data.convert_tensors_from_external(
                    [value.const_value]
                )
        onnx_ir.save(model, folder / MODEL)
    finally:
        for value, tensor in zip(values, before, strict=True):
            value.const_value = tensor


def move_out(
    values: Sequence[Any], folder: Path, name: str, progress: Callable[[float], None]
) -> None:
    """Write initializers into one file, in their order, one after the other."""
    from onnx_ir import external_data

    tensors = external_data.convert_tensors_to_external(
        [value.const_value for value in values],
        folder,
        name,
        callback=lambda _, place: progress(place.index / place.total),
        alignment=_ALIGNMENT,
        align_threshold=0,
    )
    for value, tensor in zip(values, tensors, strict=True):
        value.const_value = tensor


def _tell(progress: Callable[[float], None] | None, part: float) -> None:
    if progress is not None:
        progress(part)
