"""Which dimension of each parameter is which: the hidden size, feed-forward channels, heads.

A dimension belongs to a space of units that stay or go together: all parameters that have a unit of
a space lose it at once, so that a narrower model comes out whole. Owns how the layers of the known
architectures lie, fused ones included. Knows nothing of why a unit goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from optimizers.blocks import decoder_blocks
from optimizers.errors import StageError
from optimizers.linear_layers import is_linear, is_transposed

Kind = Literal["ffn", "kv_groups", "hidden"]


class Space(NamedTuple):
    """Units that are numbered together: of one layer, or of the whole model (layer -1).

    ``kv_groups`` counts key-value heads, each together with the query heads that read it.
    """

    kind: Kind
    layer: int


HIDDEN = Space("hidden", -1)


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of a parameter: its space, and the unit of each coordinate ((size,) int64)."""

    space: Space
    units: Any


Axes = Mapping[str, tuple[Axis | None, ...]]
"""By parameter name, an axis per dimension; None where nothing ever goes."""


@dataclass(frozen=True, slots=True)
class Widths:
    """How wide a decoder is."""

    ffn: int
    kv_groups: int
    hidden: int
    heads_per_group: int
    head_dim: int

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return self.kv_groups * self.heads_per_group


# What a linear layer reads and what it gives, by the end of its name.
_LAYERS: dict[str, tuple[str, str]] = {
    "q_proj": ("hidden", "query"),
    "k_proj": ("hidden", "key"),
    "v_proj": ("hidden", "key"),
    "o_proj": ("query", "hidden"),
    "self_attn.out_proj": ("query", "hidden"),
    "gate_proj": ("hidden", "ffn"),
    "up_proj": ("hidden", "ffn"),
    "down_proj": ("ffn", "hidden"),
    "fc1": ("hidden", "ffn"),
    "fc2": ("ffn", "hidden"),
}
# Names that say something else in another architecture, mostly since layers are fused.
_OWN_LAYERS: dict[str, dict[str, tuple[str, str]]] = {
    "gpt2": {
        "attn.c_attn": ("hidden", "query key key"),
        "attn.c_proj": ("query", "hidden"),
        "mlp.c_fc": ("hidden", "ffn"),
        "mlp.c_proj": ("ffn", "hidden"),
    },
    "gpt_neox": {
        "attention.query_key_value": ("hidden", "head"),
        "attention.dense": ("query", "hidden"),
        "mlp.dense_h_to_4h": ("hidden", "ffn"),
        "mlp.dense_4h_to_h": ("ffn", "hidden"),
    },
    "phi": {"self_attn.dense": ("query", "hidden")},
    "phi3": {
        "qkv_proj": ("hidden", "query key key"),
        "gate_up_proj": ("hidden", "ffn ffn"),
    },
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer of a block whose dimensions are known.

    Attributes:
        name: Its path in the module.
        layer: The module.
        block: The index of its block.
        reads: What it reads, such as ``hidden``.
        gives: What it gives; several words are parts one behind the other.
    """

    name: str
    layer: Any
    block: int
    reads: str
    gives: str


def known_layers(module: Any) -> list[Layer]:
    """The linear layers of the blocks whose names tell what they read and give."""
    model_type = module.config.get_text_config().model_type
    table = {**_LAYERS, **_OWN_LAYERS.get(model_type, {})}
    blocks = {id(block): index for index, block in enumerate(decoder_blocks(module))}
    found = []
    for block_name, block in module.named_modules():
        if id(block) not in blocks:
            continue
        for name, layer in block.named_modules():
            parts = f"{block_name}.{name}".split(".")
            row = table.get(".".join(parts[-2:])) or table.get(parts[-1])
            if row is not None and is_linear(layer):
                found.append(Layer(".".join(parts), layer, blocks[id(block)], *row))
    return found


def read_widths(module: Any) -> Widths:
    """How wide a module is.

    Raises:
        StageError: Its layers are unknown, or differ from each other.
    """
    config = module.config.get_text_config()
    sizes = {_sizes(layer)[0] for layer in known_layers(module) if layer.reads == "ffn"}
    reading = {layer.block for layer in known_layers(module) if layer.reads in {"ffn", "query"}}
    if len(sizes) != 1 or len(reading) != len(decoder_blocks(module)):
        what = "are not of one width" if sizes else "are not known by their names"
        raise StageError(
            f"The feed-forward layers of this architecture ({config.model_type}) {what}.",
            remedy="Use restructure with method: depth for this model.",
        )
    heads = int(config.num_attention_heads)
    kv_groups = int(getattr(config, "num_key_value_heads", None) or heads)
    return Widths(
        ffn=sizes.pop(),
        kv_groups=kv_groups,
        hidden=int(config.hidden_size),
        heads_per_group=heads // kv_groups,
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
    )


def find_axes(module: Any, widths: Widths) -> Axes:
    """Tell the dimensions of all parameters that have one of a space."""
    axes: dict[str, tuple[Axis | None, ...]] = {}
    for layer in known_layers(module):
        reads = _axis(layer.reads, layer.block, widths)
        gives = _axis(layer.gives, layer.block, widths)
        wanted = len(reads.units), len(gives.units)
        if _sizes(layer) != wanted:
            raise StageError(
                f"Layer {layer.name} is {_sizes(layer)}, not {wanted} as its name tells.",
                remedy="Use restructure with method: depth for this model.",
            )
        both = (reads, gives) if is_transposed(layer.layer) else (gives, reads)
        axes[f"{layer.name}.weight"] = both
        axes[f"{layer.name}.bias"] = (gives,)
    hidden = _axis("hidden", -1, widths)
    for name, part in module.named_modules():
        if _is_embedding(part) or part is module.get_output_embeddings():
            if part.weight.shape[1] == widths.hidden:
                axes[f"{name}.weight"] = (None, hidden)
        # Norms of queries and keys are the attention's own, whatever their size.
        elif "Norm" in type(part).__name__ and not name.rpartition(".")[2].startswith(("q_", "k_")):
            axes |= {
                f"{name}.{key}": (hidden,)
                for key, parameter in part.named_parameters(recurse=False)
                if tuple(parameter.shape) == (widths.hidden,)
            }
    return axes


def _axis(words: str, block: int, widths: Widths) -> Axis:
    """The axis that a word of the tables means; several words lie one behind the other."""
    import torch

    group = widths.heads_per_group * widths.head_dim
    parts = {
        "hidden": (HIDDEN, widths.hidden, 1),
        "ffn": (Space("ffn", block), widths.ffn, 1),
        "query": (Space("kv_groups", block), widths.kv_groups * group, group),
        "key": (Space("kv_groups", block), widths.kv_groups * widths.head_dim, widths.head_dim),
        # query, key and value of a head one behind the other, then the next head
        "head": (Space("kv_groups", block), 3 * widths.kv_groups * group, 3 * group),
    }
    chosen = [parts[word] for word in words.split()]
    units = [torch.arange(size) // of_a_unit for _, size, of_a_unit in chosen]
    return Axis(chosen[0][0], torch.cat(units))


def _sizes(layer: Layer) -> tuple[int, int]:
    """How many inputs and outputs a layer has."""
    outputs, inputs = layer.layer.weight.shape
    return (outputs, inputs) if is_transposed(layer.layer) else (inputs, outputs)


def _is_embedding(part: Any) -> bool:
    from torch.nn import Embedding

    return isinstance(part, Embedding)
