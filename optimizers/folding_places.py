"""Where in a torch decoder scales may be folded in, and the proof that they change nothing.

Owns the search: norms and the linear layers that read them, values and the layer behind attention,
the linear half of a gated feed-forward network and the layer behind it. What looks like such a pair
is believed only when random scales are folded in and predictions stay. Knows nothing of how scales
are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from optimizers.errors import StageError
from optimizers.foldings import Folding, Named, behind_linear, behind_norm, weight_of
from optimizers.linear_layers import block_layers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_VALUES = {
    "v_proj": ("o_proj", "out_proj", "dense"),
    "qkv_proj": ("o_proj",),
    "c_attn": ("c_proj",),
}
_UPS = {"up_proj": ("down_proj",), "gate_up_proj": ("down_proj",)}
_PROBE_TOKENS = 32
_SEED = 20_261_124
_ALLOWED = 1e-4  # of the logits' largest


def find_foldings(module: Any, document: NDArray[np.int64]) -> list[Folding]:
    """List the places where scales may be folded in, proven to change nothing.

    Args:
        module: A causal language model in float32; as it was when this returns.
        document: Token ids to prove it on.

    Raises:
        StageError: A norm feeds something else than linear layers, or there is no such place.
    """
    layers = block_layers(module)
    norms = _of_norms(module, layers, document)
    if norms and not _changes_nothing(module, norms, document):
        raise StageError(
            "What the norms of this architecture give is read by more than linear layers (for "
            f"example that of {norms[0].name}), so no scales can be folded into them.",
            remedy="Leave smooth out for this model.",
        )
    found = list(norms)
    for candidates in (_of_values(module, layers), _of_ups(layers)):
        # Many have a function in between: a layer of the same name is no promise.
        if candidates and _changes_nothing(module, candidates, document):
            found += candidates
    if not found:
        raise StageError(
            "This architecture has no place where scales could be folded in.",
            remedy="Leave smooth out for this model.",
        )
    return found


def _of_norms(module: Any, layers: Sequence[Named], document: NDArray[np.int64]) -> list[Folding]:
    """Norms with the linear layers of the blocks that read what they give."""
    import torch

    given: dict[int, str] = {}  # by the address of what a norm gave
    held: list[Any] = []  # so that no address is used again
    readers: dict[str, dict[str, Any]] = {}

    def after_norm(name: str, _norm: Any, _inputs: Any, output: Any) -> None:
        held.append(output)
        given[output.data_ptr()] = name

    def before_linear(name: str, layer: Any, inputs: Any) -> None:
        held.append(inputs[0])
        if (norm := given.get(inputs[0].data_ptr())) is not None:
            readers.setdefault(norm, {})[name] = layer

    norms = {name: part for name, part in module.base_model.named_modules() if _is_norm(part)}
    hooks = [
        *(norm.register_forward_hook(partial(after_norm, name)) for name, norm in norms.items()),
        *(layer.register_forward_pre_hook(partial(before_linear, name)) for name, layer in layers),
    ]
    try:
        with torch.no_grad():
            ids = torch.from_numpy(document[:_PROBE_TOKENS])[None]
            module.base_model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        behind_norm((name, norms[name]), tuple(consumers.items()))
        for name, consumers in readers.items()
    ]


def _is_norm(part: Any) -> bool:
    weight = getattr(part, "weight", None)
    return "norm" in type(part).__name__.lower() and getattr(weight, "ndim", 0) == 1


def _of_values(module: Any, layers: Sequence[Named]) -> list[Folding]:
    """Layers that make attention's values, alone or behind queries and keys, with its last layer.

    Several heads of queries may share a head of values; their channels then share scales.
    """
    config = module.config.get_text_config()
    found = []
    for source, consumer in _siblings(layers, _VALUES):
        outputs, inputs = weight_of(source[1]).shape[0], weight_of(consumer[1]).shape[1]
        width = getattr(config, "head_dim", None) or inputs // config.num_attention_heads
        queries, heads = inputs // width, outputs // width
        if not source[0].endswith(".v_proj"):
            heads = (heads - queries) // 2
        if inputs % width or heads < 1 or queries % heads:
            continue
        found.append(behind_linear("value", source, consumer, heads, width))
    return found


def _of_ups(layers: Sequence[Named]) -> list[Folding]:
    """Layers whose outputs a gate multiplies, alone or behind the gate's, with the layer behind."""
    return [
        behind_linear("up", source, consumer, 1, weight_of(consumer[1]).shape[1])
        for source, consumer in _siblings(layers, _UPS)
    ]


def _siblings(
    layers: Sequence[Named], names: Mapping[str, tuple[str, ...]]
) -> list[tuple[Named, Named]]:
    """Pairs of layers of the same parent by their last names."""
    by_name = dict(layers)
    pairs = [
        ((name, layer), f"{name.rpartition('.')[0]}.{other}")
        for name, layer in layers
        for other in names.get(name.rpartition(".")[2], ())
    ]
    return [(source, (name, by_name[name])) for source, name in pairs if name in by_name]


def _changes_nothing(module: Any, foldings: Sequence[Folding], document: NDArray[np.int64]) -> bool:
    """Whether predictions stay with random scales folded in; the module is put back exactly.

    Scales are powers of two, with which weights are multiplied and divided without rounding.
    """
    import torch

    def logits() -> Any:
        with torch.no_grad():
            ids = torch.from_numpy(document[:_PROBE_TOKENS])[None]
            return module(input_ids=ids, use_cache=False).logits

    before = logits()
    generator = torch.Generator().manual_seed(_SEED)
    folded = []
    for folding in foldings:
        powers = torch.randint(-2, 3, (folding.channels,), generator=generator)
        folded.append((folding, 2.0**powers, [vector.clone() for vector in folding.small]))
        folding.fold(folded[-1][1])
    after = logits()
    for folding, scales, vectors in reversed(folded):
        folding.fold(1 / scales)
        for vector, kept in zip(folding.small, vectors, strict=True):
            vector.copy_(kept)
    return bool((after - before).abs().max() <= _ALLOWED * before.abs().max())
