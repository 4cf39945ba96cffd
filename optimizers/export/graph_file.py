"""How a graph lies on disk: ``model.onnx`` beside one ``model.onnx.data`` with all large weights.

Knows nothing of what the graph computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
_INLINE_BYTES = 1_024  # smaller constants stay inside, where shape inference can read them


def save(model: Any, folder: Path) -> Path:
    """Write an ``onnx_ir.Model`` into ``folder``; return the path of ``model.onnx``."""
    import onnx_ir as ir

    _anonymize(model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODEL_FILE
    remove(folder)
    # One worker: weights are converted one after another, so that no two copies live at once.
    ir.save(
        model,
        path,
        external_data=WEIGHTS_FILE,
        size_threshold_bytes=_INLINE_BYTES,
        max_workers=1,
    )
    return path


def as_saved(model: Any) -> Any:
    """Give what loading would give if ``model`` were saved; large weights are the same objects."""
    import onnx_ir as ir

    _anonymize(model)
    large = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value.nbytes > _INLINE_BYTES
    }
    for name, tensor in large.items():
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            WEIGHTS_FILE, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
        )
    saved = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    for name, tensor in large.items():
        saved.graph.initializers[name].const_value = tensor
    return saved


def _anonymize(model: Any) -> None:
    """Drop what would tell of the building machine and make equal graphs differ in their bytes."""
    graph = model.graph
    graph.name = "decoder"
    for part in (model, graph, *graph, *model.functions.values()):
        part.metadata_props.clear()
        part.doc_string = None
    values = [*graph.inputs, *graph.initializers.values()]
    for value in (*values, *(output for node in graph for output in node.outputs)):
        value.metadata_props.clear()
        value.doc_string = None


def remove(folder: Path) -> None:
    """Delete what an earlier attempt wrote into ``folder``."""
    for name in (MODEL_FILE, WEIGHTS_FILE):
        (folder / name).unlink(missing_ok=True)
