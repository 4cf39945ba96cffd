"""What one ``GroupQueryAttention`` node of a packed graph computes, read from the node itself.

Owns the reading, and the refusal of what is not known here: whoever recomputes a node or changes
its cache must not overlook a feature. Knows nothing of the rest of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.manifest import GraphSpec
from optimizers.errors import StageError
from optimizers.export.packed import ATTENTION, attention_nodes

KEY_SCALE, VALUE_SCALE = 12, 13  # places among the node's inputs
_COS, _SIN = 7, 8
_INPUTS = {0, 1, 2, 3, 4, 5, 6, _COS, _SIN, 16}
_ATTRIBUTES = {
    "num_heads",
    "kv_num_heads",
    "scale",
    "do_rotary",
    "rotary_interleaved",
    "softcap",
    "local_window_size",
}


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines (positions, pairs) that keys and queries are turned by.

    Pair i is the channels i and i + pairs, or 2i and 2i + 1 where ``interleaved``; channels beyond
    the pairs are not turned.
    """

    cos: NDArray[np.float32]
    sin: NDArray[np.float32]
    interleaved: bool

    def pairs(self) -> tuple[slice, slice]:
        """The first and the second channels of all pairs."""
        count = self.cos.shape[1]
        if self.interleaved:
            return slice(0, 2 * count, 2), slice(1, 2 * count, 2)
        return slice(0, count), slice(count, 2 * count)


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention; ``window`` is how many tokens it sees, None = all."""

    node: Any
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float
    window: int | None
    rotary: Rotary | None

    @property
    def kind(self) -> tuple[object, ...]:
        """What layers have in common that are computed alike."""
        turned = self.rotary and (self.rotary.cos.shape[1], self.rotary.interleaved)
        sizes = self.heads, self.kv_heads, self.head_dim
        return (*sizes, self.scale, self.softcap, self.window, turned)

    def told(self) -> str:
        """The same for messages."""
        parts = [f"{self.heads} heads of {self.head_dim} over {self.kv_heads}"]
        if self.window is not None:
            parts.append(f"a window of {self.window}")
        if self.softcap:
            parts.append(f"a soft cap of {self.softcap:g}")
        return " with ".join([parts[0], " and ".join(parts[1:])] if parts[1:] else parts)


def read_attentions(model: Any, graph: GraphSpec) -> list[Attention]:
    """Read all layers of a packed graph (``onnx_ir.Model``) in their order.

    Raises:
        StageError: The graph has another form, or a node does what is not known here.
    """
    if graph.form != "packed":
        raise StageError(
            "The graph keeps no cache in place (it was exported by optimum).",
            remedy="Leave this stage out for this model.",
        )
    return [
        _read(node, layer.key_dim)
        for node, layer in zip(attention_nodes(model), graph.layers, strict=True)
    ]


def _read(node: Any, head_dim: int) -> Attention:
    places = {place for place, value in enumerate(node.inputs) if value is not None}
    unknown = [*sorted(node.attributes.keys() - _ATTRIBUTES), *sorted(places - _INPUTS)]
    if unknown:
        told = ", ".join(f"input {one}" if isinstance(one, int) else one for one in unknown)
        raise StageError(
            f"{ATTENTION} uses {told}, whose computation is not checked with another cache.",
            remedy="Leave this stage out for this model.",
        )
    window = node.attributes.get_int("local_window_size", -1)
    return Attention(
        node=node,
        heads=node.attributes.get_int("num_heads"),
        kv_heads=node.attributes.get_int("kv_num_heads"),
        head_dim=head_dim,
        scale=node.attributes.get_float("scale", 0.0) or head_dim**-0.5,
        softcap=node.attributes.get_float("softcap", 0.0),
        window=None if window < 0 else window,
        rotary=_rotary(node),
    )


def _rotary(node: Any) -> Rotary | None:
    if not node.attributes.get_int("do_rotary", 0):
        return None
    return Rotary(
        cos=node.inputs[_COS].const_value.numpy(),
        sin=node.inputs[_SIN].const_value.numpy(),
        interleaved=bool(node.attributes.get_int("rotary_interleaved", 0)),
    )
