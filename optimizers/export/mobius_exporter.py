"""The first exporter: mobius builds the graph from config and weights, without running the model.

Owns what has to be told to mobius and corrected in what it builds: norm epsilons, embedding
scales, windows and rotary tables come from transformers. Knows nothing of verification.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizers.export.decoder import (
    Decoder,
    embedding_scale,
    empty_module,
    norm_epsilon,
    rotary_tables,
)
from optimizers.export.folding import fold_transposes
from optimizers.export.graph_file import save
from optimizers.export.packed import pack
from optimizers.export.plain import plain_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from artifacts.manifest import GraphSpec

_EPSILON_FIELDS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")


def export_packed(decoder: Decoder, out: Path) -> GraphSpec:
    """Write ``out/model.onnx`` in the packed form."""
    model, graph = build_packed(decoder)
    save(model, out)
    return graph


def build_packed(decoder: Decoder) -> tuple[Any, GraphSpec]:
    """Make the packed form of mobius' graph for CPUs; weights are read when they are asked for."""
    module = empty_module(decoder.config)
    model = _build(decoder, module, "cpu")
    _correct_embedding_scale(model, embedding_scale(module))
    return model, pack(model, decoder, rotary_tables(decoder, module))


def export_plain(decoder: Decoder, out: Path) -> GraphSpec:
    """Write ``out/model.onnx`` in the plain form, from mobius' graph without fused attention."""
    model = _build(decoder, empty_module(decoder.config), "default")
    graph = plain_spec(model, decoder)
    save(model, out)
    return graph


def _build(decoder: Decoder, module: Any, target: str) -> Any:
    """Build the graph, then give it the weights of the folder's safetensors files."""
    import mobius

    from optimizers.export.mapped_weights import map_weights

    registry, model_type = mobius.registry, decoder.config.model_type
    special = decoder.architecture in registry  # some models share a type, not a definition
    base = registry.get(decoder.architecture if special else model_type)
    made: list[Any] = []
    with _quiet():
        package = mobius.build(
            str(decoder.folder),
            module_class=_recording(base, _missing_epsilon(decoder, module), made),
            dtype="f32",
            execution_provider=target,
            load_weights=False,
        )
        if set(package) != {"model"}:
            raise ValueError(f"it builds {len(package)} graphs ({', '.join(package)}), not one")
        definition = made[-1]
        mapped = map_weights(decoder.folder)
        weights = definition.preprocess_weights(dict(mapped.tensors))
        turned = _turned(package["model"])
        package.apply_weights(weights, prefix_map=getattr(definition, "weight_prefix_map", None))
        _read_in_parts(package["model"], weights, turned, mapped.forget)
    initializers = package["model"].graph.initializers.values()
    missing = [value.name for value in initializers if value.const_value is None]
    if missing:
        raise ValueError(f"it wants weights that the model does not have, such as {missing[0]}")
    fold_transposes(package["model"])  # a head that shares its weight with the embedding
    return package["model"]


def _recording(base: Any, epsilon: float | None, made: list[Any]) -> Any:
    """Subclass a definition: it corrects its config, and ``made`` gets what is built."""

    class Recorded(base):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            if epsilon is not None:
                config = replace(config, rms_norm_eps=epsilon)
            super().__init__(config)
            made.append(self)

    return Recorded


def _missing_epsilon(decoder: Decoder, module: Any) -> float | None:
    """Return the norms' epsilon where the config does not say it and mobius would guess."""
    if any(getattr(decoder.config, field, None) for field in _EPSILON_FIELDS):
        return None
    return norm_epsilon(module)


def _turned(model: Any) -> dict[str, str]:
    """Which weights mobius will store transposed, by the names that it gives those."""
    return {
        f"{node.inputs[0].name}_t": node.inputs[0].name
        for node in model.graph
        if node.op_type == "Transpose" and node.inputs[0].is_initializer()
    }


def _read_in_parts(
    model: Any, weights: dict[str, Any], turned: dict[str, str], forget: Callable[[], None]
) -> None:
    """Let constants that are one weight as it lies, or its transpose, be read a part at a time.

    What mobius makes of several stays its own, and is read as a whole.
    """
    import onnx_ir as ir

    from optimizers.export.source_tensor import SourceTensor

    for name, value in model.graph.initializers.items():
        tensor = weights.get(turned.get(name, name))
        if tensor is None or not tensor.is_floating_point() or value.dtype != ir.DataType.FLOAT:
            continue
        source = SourceTensor(tensor.T if name in turned else tensor, name, forget)
        if value.const_value is not None and source.shape == value.const_value.shape:
            value.const_value = source


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep mobius' many warnings (one per guess) out of the build's log."""
    logger = logging.getLogger("mobius")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _correct_embedding_scale(model: Any, scale: float | None) -> None:
    """Put the exact factor where mobius rounds it (to two digits, or to float16)."""
    import onnx_ir as ir

    if scale is None:
        return
    tokens = next(value for value in model.graph.inputs if value.name == "input_ids")
    for embedding, _ in tokens.uses():
        for node, _ in embedding.outputs[0].uses():
            if node.op_type != "Mul":
                continue
            place = 1 if node.inputs[0] is embedding.outputs[0] else 0
            tensor = ir.tensor(np.array(scale, np.float32), name="embedding_scale")
            kind, shape = ir.TensorType(tensor.dtype), tensor.shape
            value = ir.Value(name=tensor.name, const_value=tensor, type=kind, shape=shape)
            model.graph.register_initializer(value)
            node.replace_input_with(place, value)
            return
