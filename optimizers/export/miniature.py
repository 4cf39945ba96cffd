"""A model of the first few layers and tokens of another, with its own weights.

An exporter that does right by it does right by the whole: layers are made alike, one after the
other, and no row of the embeddings is treated otherwise than the next. Owns what is left out, and
the refusal where layers are not alike. Knows nothing of exporters or of ONNX.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizers.json_file import read_object
from optimizers.model_folder import CONFIG

if TYPE_CHECKING:
    import torch

    from optimizers.export.decoder import Decoder

_LEAST_LAYERS = 2  # the first alone would not show what goes from one to the next
_TOKENS = 4_096


class MiniatureError(Exception):
    """The model has no miniature that would stand for it; the message says why."""


@dataclass(frozen=True, slots=True)
class Miniature:
    """What was kept.

    Attributes:
        folder: A Hugging Face folder.
        layers: How many.
        tokens: How many rows of the embeddings.
    """

    folder: Path
    layers: int
    tokens: int


def write_miniature(decoder: Decoder, folder: Path) -> Miniature:
    """Write a model's miniature into ``folder``.

    Raises:
        MiniatureError: There is none that would show how all layers are exported.
    """
    from safetensors.torch import save_file

    from optimizers.export.mapped_weights import map_weights

    mapped = map_weights(decoder.folder)
    weights = mapped.tensors
    layers = _layers(decoder, weights)
    tokens = min(_TOKENS, decoder.vocab_size)
    kept = {
        name: _cut(tensor, decoder.vocab_size, tokens) if _layer(name) is None else tensor
        for name, tensor in weights.items()
        if (_layer(name) or 0) < layers
    }
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in kept.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    mapped.forget()
    config = _config(read_object(decoder.folder / CONFIG), decoder.layers, layers, tokens)
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return Miniature(folder, layers, tokens)


def _layers(decoder: Decoder, weights: Mapping[str, torch.Tensor]) -> int:
    """How many layers show each kind: by their weights, and by what the config says of each."""
    kinds: list[set[Any]] = [set() for _ in range(decoder.layers)]
    for name, tensor in weights.items():
        layer = _layer(name)
        if layer is None:
            continue
        if layer >= decoder.layers:
            raise MiniatureError(f"{name} belongs to none of its {decoder.layers} layers")
        own = name.replace(f".{layer}.", ".*.", 1)
        kinds[layer].add((own, tuple(tensor.shape), tensor.dtype))
    if not all(kinds):
        raise MiniatureError("its weights do not tell which layer they belong to")
    per_layer = [
        value
        for value in decoder.config.to_dict().values()
        if isinstance(value, list) and len(value) == decoder.layers
    ]
    seen = [
        (frozenset(kind), *(json.dumps(value[layer]) for value in per_layer))
        for layer, kind in enumerate(kinds)
    ]
    last_new = max(seen.index(kind) for kind in seen)
    return min(max(_LEAST_LAYERS, last_new + 1), decoder.layers)


def _layer(name: str) -> int | None:
    """Which layer a weight belongs to: the first number in its name."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _cut(tensor: torch.Tensor, vocabulary: int, tokens: int) -> torch.Tensor:
    """The first rows of what has a row for each token."""
    return tensor[:tokens] if tensor.ndim and tensor.shape[0] == vocabulary else tensor


def _config(config: dict[str, Any], layers: int, kept: int, tokens: int) -> dict[str, Any]:
    """The config of the miniature; whatever the architecture calls its layers, it has fewer."""
    changed: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, list) and len(value) == layers:
            changed[name] = value[:kept]
        elif name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
            changed[name] = kept
        elif name == "vocab_size":
            changed[name] = tokens
        elif name.endswith("_token_id") and isinstance(value, int) and value >= tokens:
            changed[name] = 0  # an embedding must have the row that is told to be padding
        else:
            changed[name] = value
    return changed
