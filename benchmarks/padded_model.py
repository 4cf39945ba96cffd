"""The demo model in the shape of a larger one: the same function at the larger one's cost.

Random weights cost what trained ones do, but say nothing of how often one model guesses what
another says. So the trained demo model is written into the sizes of SmolLM2-135M: widths are
padded, and layers whose outputs are zero are added between its own. What is added has random
weights wherever they cannot be seen, so that everything is computed and nothing changes:

- ``RMSNorm`` divides by the root of a mean, which zero channels make smaller: its weights and its
  epsilon are scaled by what they are.
- Each query head goes where its own key-value head serves it; what no head of the demo model fills
  has zero columns in ``o_proj``, as have feed-forward channels in ``down_proj``.
- Tokens that the demo model does not have must never be chosen, and zero rows would have logits of
  0. A channel that is the same small number for every token is taken up by the last norm alone; the
  rows of the padding are far below zero there. It adds one number to all other logits, which no
  softmax sees, and its square is taken out of epsilon.

Owns the sizes and where everything goes. Knows nothing of serving.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import ROOT
from benchmarks.shapes import SHAPES, Shape

DEMO = ROOT / "demo" / "model"
_FORMAT = 1  # raise it when a folder written before must be written anew
_SEED = 0
_STD = 0.02  # of weights whose results nobody sees
_COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

# The square of the constant channel, as a share of all that epsilon stands for.
_SHARE = 0.5
_GAIN = 100.0  # of the last norm at the constant channel, which brings it to about 0.1
_FORBIDDEN = -1e3  # at the constant channel, of tokens that are padding: logits of about -100

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a decoder of Llama's kind."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int

    @property
    def group(self) -> int:
        """Query heads that a key-value head serves."""
        return self.heads // self.kv_heads


def make_padded(folder: Path, shape: Shape = SHAPES["smollm2-135m"], demo: Path = DEMO) -> Path:
    """The folder of the padded model, written if it is not there yet.

    Args:
        folder: Where models lie; it gets a folder of its own in it.
        shape: What it costs; its heads are cut to the size of the demo model's.
        demo: What it computes: a Hugging Face folder with a Llama of tied embeddings.
    """
    model = folder / f"demo-as-{shape.name}-v{_FORMAT}"
    if model.is_dir():
        return model
    config = json.loads((demo / "config.json").read_text(encoding="utf-8"))
    small = sizes_of(config)
    large = sizes_at(shape, small)
    draft = model.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    _write_config(draft, config, small, large)
    for name in _COPIED:
        shutil.copyfile(demo / name, draft / name)
    _write_weights(draft, demo, small, large)
    draft.rename(model)
    return model


def places(small: int, large: int) -> tuple[int, ...]:
    """Where the layers of the demo model stand among all, as evenly as can be; first and last."""
    return tuple(round(index * (large - 1) / (small - 1)) for index in range(small))


def sizes_of(config: Mapping[str, Any]) -> Sizes:
    """Of the model with this config."""
    return Sizes(
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["head_dim"],
        config["vocab_size"],
    )


def sizes_at(shape: Shape, small: Sizes) -> Sizes:
    """The shape with heads of the small model's size: as many weights, in more heads.

    Raises:
        ValueError: The small model does not fit into it.
    """
    parts = shape.hidden // shape.heads // small.head
    large = Sizes(
        shape.hidden,
        shape.intermediate,
        shape.layers,
        shape.heads * parts,
        shape.kv_heads * parts,
        small.head,
        shape.vocabulary,
    )
    short = [field.name for field in fields(Sizes) if _short(field.name, small, large)]
    if short:
        raise ValueError(f"{shape.name} is smaller than the model, or as large: {short}.")
    return large


def _short(name: str, small: Sizes, large: Sizes) -> bool:
    """Whether there is too little of something; a hidden channel and a token must be to spare."""
    spare = name in {"hidden", "vocabulary"}
    return bool(getattr(large, name) < getattr(small, name) + spare)


def _constant(epsilon: float, small: Sizes) -> float:
    """What the constant channel holds for every token of the demo model."""
    return math.sqrt(_SHARE * epsilon * small.hidden)


def _write_config(folder: Path, config: dict[str, Any], small: Sizes, large: Sizes) -> None:
    padded = config | {
        "dtype": "float32",
        "hidden_size": large.hidden,
        "intermediate_size": large.intermediate,
        "num_hidden_layers": large.layers,
        "num_attention_heads": large.heads,
        "num_key_value_heads": large.kv_heads,
        "vocab_size": large.vocabulary,
        "rms_norm_eps": config["rms_norm_eps"] * (1 - _SHARE) * small.hidden / large.hidden,
    }
    (folder / "config.json").write_text(json.dumps(padded, indent=2), encoding="utf-8")


def _write_weights(folder: Path, demo: Path, small: Sizes, large: Sizes) -> None:
    from safetensors.numpy import load_file, save_file

    loaded = load_file(demo / "model.safetensors")
    weights = {name: array.astype(np.float32) for name, array in loaded.items()}
    config = json.loads((demo / "config.json").read_text(encoding="utf-8"))
    constant = _constant(config["rms_norm_eps"], small)
    padded = dict(_padded(weights, small, large, constant))
    save_file(padded, folder / "model.safetensors", metadata={"format": "pt"})


def _padded(
    weights: Weights, small: Sizes, large: Sizes, constant: float
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every weight of the padded model by name."""
    embeddings = np.zeros((large.vocabulary, large.hidden), np.float32)
    embeddings[: small.vocabulary, : small.hidden] = weights["model.embed_tokens.weight"]
    embeddings[: small.vocabulary, small.hidden] = constant
    embeddings[small.vocabulary :, small.hidden] = _FORBIDDEN
    yield "model.embed_tokens.weight", embeddings
    scale = np.float32(math.sqrt(small.hidden / large.hidden))
    last = np.zeros(large.hidden, np.float32)
    last[: small.hidden] = weights["model.norm.weight"] * scale
    last[small.hidden] = _GAIN
    yield "model.norm.weight", last
    rng = np.random.default_rng(_SEED)
    own = {place: index for index, place in enumerate(places(small.layers, large.layers))}
    for place in range(large.layers):
        layer = _unseen_layer(large, rng)
        if place in own:
            prefix = f"model.layers.{own[place]}."
            filled = {name: weights[prefix + name] for name in layer}
            _fill(layer, filled, small, large)
        yield from ((f"model.layers.{place}.{name}", array) for name, array in layer.items())


def _unseen_layer(large: Sizes, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """A layer that computes much and adds nothing."""

    def drawn(rows: int, columns: int) -> NDArray[np.float32]:
        return rng.standard_normal((rows, columns), np.float32) * np.float32(_STD)

    queries, keys = large.heads * large.head, large.kv_heads * large.head
    return {
        "input_layernorm.weight": np.ones(large.hidden, np.float32),
        "self_attn.q_proj.weight": drawn(queries, large.hidden),
        "self_attn.k_proj.weight": drawn(keys, large.hidden),
        "self_attn.v_proj.weight": drawn(keys, large.hidden),
        "self_attn.o_proj.weight": np.zeros((large.hidden, queries), np.float32),
        "post_attention_layernorm.weight": np.ones(large.hidden, np.float32),
        "mlp.gate_proj.weight": drawn(large.intermediate, large.hidden),
        "mlp.up_proj.weight": drawn(large.intermediate, large.hidden),
        "mlp.down_proj.weight": np.zeros((large.hidden, large.intermediate), np.float32),
    }


def _fill(layer: dict[str, NDArray[np.float32]], own: Weights, small: Sizes, large: Sizes) -> None:
    """Put a layer of the demo model into one that adds nothing, in place."""
    channels = np.arange(small.hidden)
    inner = np.arange(small.intermediate)
    keys = np.arange(small.kv_heads * small.head)
    of_group = np.arange(small.heads) % small.group
    heads = np.arange(small.heads) // small.group * large.group + of_group
    queries = (heads[:, None] * large.head + np.arange(small.head)).ravel()
    reads = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": inner}
    reads["up_proj"] = inner
    for name, array in own.items():
        kind = name.split(".")[-2]
        if kind in reads:
            layer[name][reads[kind]] = 0.0  # of the added channels, the constant one above all
            layer[name][np.ix_(reads[kind], channels)] = array
        elif kind.endswith("layernorm"):
            layer[name][:] = 0.0
            layer[name][channels] = array * np.float32(math.sqrt(small.hidden / large.hidden))
        else:
            columns = queries if kind == "o_proj" else inner
            layer[name][np.ix_(channels, columns)] = array
