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
from optimizers.model_folder import weights_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from artifacts.manifest import GraphSpec

_EPSILON_FIELDS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")


def export_packed(decoder: Decoder, out: Path) -> GraphSpec:
    """Write ``out/model.onnx`` in the packed form, from mobius' graph for CPUs."""
    module = empty_module(decoder.config)
    model = _build(decoder, module, "cpu")
    _correct_embedding_scale(model, embedding_scale(module))
    graph = pack(model, decoder, rotary_tables(decoder, module))
    save(model, out)
    return graph


def export_plain(decoder: Decoder, out: Path) -> GraphSpec:
    """Write ``out/model.onnx`` in the plain form, from mobius' graph without fused attention."""
    model = _build(decoder, empty_module(decoder.config), "default")
    graph = plain_spec(model, decoder)
    save(model, out)
    return graph


def _build(decoder: Decoder, module: Any, target: str) -> Any:
    """Build the graph, then give it the weights of the folder's safetensors files."""
    import mobius

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
        weights = definition.preprocess_weights(_weights(decoder.folder))
        package.apply_weights(weights, prefix_map=getattr(definition, "weight_prefix_map", None))
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


def _weights(folder: Path) -> dict[str, Any]:
    """Map the folder's weights into memory; files may be links into a download cache."""
    from safetensors.torch import load_file

    weights: dict[str, Any] = {}
    for file in weights_files(folder):
        weights.update(load_file(file))
    return weights


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
