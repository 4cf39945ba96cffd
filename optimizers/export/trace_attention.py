"""Makes transformers' modules attend through ONNX Runtime's operator while they are traced.

Owns the attention function that stands for ``com.microsoft.GroupQueryAttention`` (causal, grouped
heads, cache in place) and the two ways to put it into a module: transformers' AttentionInterface,
and, for modules older than that, torch's ``scaled_dot_product_attention``. Imports torch when it
is imported, so only functions import it. Knows nothing of ONNX files.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_utils import AttentionInterface

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NAME = "onnx_group_query"


class _Handover(CacheLayerMixin):  # type: ignore[misc]
    """A cache layer that hands new keys and values through: the operator keeps the old ones."""

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Nothing is stored."""

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Return what came in."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of the new tokens: masks are the operator's business."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return 0: positions are given explicitly."""
        return 0

    def get_max_length(self) -> int:
        """Return -1, which stands for no limit."""
        return -1


@dataclass(slots=True)
class Attending:
    """What attention was asked for in one forward pass.

    Attributes:
        past: Per layer, key and value of the cache: (1, kv_heads, length, head_dim) each; None
            while only shapes are recorded.
        present: Per layer, the same tensors after the pass.
        shapes: Per layer, (kv_heads, key_dim, value_dim).
    """

    past: Sequence[tuple[Any, Any]] | None = None
    present: list[tuple[Any, Any]] = field(default_factory=list)
    shapes: list[tuple[int, int, int]] = field(default_factory=list)

    def interface(
        self,
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Any, None]:
        """Attend in the manner of transformers' AttentionInterface: (1, n, heads, dim)."""
        del module, attention_mask  # the operator is causal by itself
        return self._attend(query, key, value, scaling, softcap), None

    def scaled_dot_product(
        self,
        query: Any,
        key: Any,
        value: Any,
        *_: Any,
        scale: float | None = None,
        **__: Any,
    ) -> Any:
        """Attend in the manner of torch's function: (1, heads, n, dim)."""
        return self._attend(query, key, value, scale, None).transpose(1, 2)

    def _attend(
        self, query: Any, key: Any, value: Any, scale: float | None, softcap: float | None
    ) -> Any:
        """Stand for the operator: (1, heads, n, dim) in, (1, n, heads, value_dim) out."""
        _, heads, tokens, dim = query.shape
        kv_heads, value_dim = key.shape[1], value.shape[3]
        layer = len(self.present)
        self.shapes.append((int(kv_heads), int(dim), int(value_dim)))
        if self.past is None:
            self.present.append((key, value))
            return torch.zeros(1, tokens, heads, value_dim)
        past_key, past_value = self.past[layer]
        lengths = torch.zeros(1, dtype=torch.int32)  # replaced when the graph is packed
        attributes: dict[str, int | float] = {
            "num_heads": int(heads),
            "kv_num_heads": int(kv_heads),
            "do_rotary": 0,
            "scale": float(dim**-0.5 if scale is None else scale),
        }
        if softcap:
            attributes["softcap"] = float(softcap)
        output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (_rows(query), _rows(key), _rows(value), past_key, past_value, lengths, lengths[0]),
            attributes,
            dtypes=(torch.float32, torch.float32, torch.float32),
            shapes=((1, tokens, heads * value_dim), past_key.shape, past_value.shape),
            version=1,
        )
        self.present.append((present_key, present_value))
        return output.reshape(1, tokens, heads, value_dim)


def new_cache() -> Any:
    """Make the cache that a traced module is called with."""
    return Cache(layer_class_to_replicate=_Handover)


@contextmanager
def through_interface(module: Any, attending: Attending) -> Iterator[None]:
    """Make a module that knows the AttentionInterface attend through ``attending``."""
    before = module.config._attn_implementation  # noqa: SLF001 - its only place
    AttentionInterface.register(_NAME, attending.interface)
    module.config._attn_implementation = _NAME  # noqa: SLF001
    try:
        yield
    finally:
        module.config._attn_implementation = before  # noqa: SLF001
        AttentionInterface._global_mapping.pop(_NAME)  # noqa: SLF001 - there is no unregister


@contextmanager
def through_torch(module: Any, attending: Attending) -> Iterator[None]:
    """Make an older module, which calls torch's function itself, attend through ``attending``."""
    before = module.config._attn_implementation  # noqa: SLF001
    module.config._attn_implementation = "sdpa"  # noqa: SLF001
    real = torch.nn.functional.scaled_dot_product_attention
    try:
        torch.nn.functional.scaled_dot_product_attention = attending.scaled_dot_product
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = real
        module.config._attn_implementation = before  # noqa: SLF001


def _rows(states: Any) -> Any:
    """Bring (1, heads, n, dim) into the operator's (1, n, heads * dim)."""
    return states.transpose(1, 2).flatten(2)
