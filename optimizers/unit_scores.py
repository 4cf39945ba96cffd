"""How much each unit of a torch module is needed: feed-forward channels, head groups, hidden ones.

Three measures: how active a unit is on a text (Muralidharan et al., "Compact Language Models via
Pruning and Knowledge Distillation", 2024, https://arxiv.org/abs/2407.14679); how much of it arrives
in what reads it, activity times weights (Wanda's score taken over whole units, as An et al. do in
"Fluctuation-based Adaptive Structured Pruning for Large Language Models", 2023,
https://arxiv.org/abs/2312.11983); and the size of its weights, which needs no text. Knows nothing
of how many units go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from optimizers.dimensions import Axes, Axis, Space, known_layers
from optimizers.linear_layers import is_transposed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROWS = 8  # documents that are read side by side


def magnitudes(module: Any, axes: Axes) -> dict[Space, Any]:
    """The l2 norm of all weights of each unit: (units,) float64 by space."""
    import torch

    sums: dict[Space, Any] = {}
    for name, parameter in module.named_parameters():  # a tied parameter counts once
        for place, axis in enumerate(axes.get(name, ())):
            if axis is None:
                continue
            others = [other for other in range(parameter.ndim) if other != place]
            squares = parameter.detach().double() ** 2
            squares = squares.sum(dim=others) if others else squares
            if axis.space not in sums:
                sums[axis.space] = torch.zeros(int(axis.units.max()) + 1, dtype=torch.float64)
            sums[axis.space].index_add_(0, axis.units, squares)
    return {space: total.sqrt() for space, total in sums.items()}


def activations(
    module: Any, axes: Axes, documents: Sequence[NDArray[np.int64]], *, weighted: bool
) -> dict[Space, Any]:
    """How active each unit is on a text: (units,) float64 by space.

    A unit's activity is the mean over tokens of the l2 norm of what it hands to the layers that
    read it: of a channel |activation|, of a group the norm of its heads' outputs. That of a hidden
    channel is summed over what every block's attention and feed-forward, and the head, read.

    Args:
        module: In float32.
        axes: Its dimensions.
        documents: Token ids, all of one length.
        weighted: Whether each activation counts by the norm of the weights that read it.
    """
    import numpy as np
    import torch

    sums: dict[Space, Any] = {}

    def listen(layer: Any, axis: Axis) -> Callable[[Any, tuple[Any, ...]], None]:
        squares = (layer.weight.detach().double() ** 2).sum(dim=1 if is_transposed(layer) else 0)
        weights = squares if weighted else torch.ones_like(squares)

        def before(_layer: Any, given: tuple[Any, ...]) -> None:
            sums[axis.space] = sums.get(axis.space, 0.0) + _activity(given[0], axis, weights)

        return before

    handles = [
        layer.register_forward_pre_hook(listen(layer, axis))
        for layer, axis in _readers(module, axes)
    ]
    try:
        with torch.no_grad():
            for start in range(0, len(documents), _ROWS):
                ids = torch.from_numpy(np.stack(documents[start : start + _ROWS]))
                module(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    tokens = sum(document.size for document in documents)
    return {space: total / tokens for space, total in sums.items()}


def _readers(module: Any, axes: Axes) -> list[tuple[Any, Axis]]:
    """The layers to listen at: every reader of a block's own spaces, and one per hidden state.

    Queries, keys and values read the same state, and so do gate and up: the first stands for all.
    """
    found: list[tuple[Any, Axis | None]] = []
    heard: set[tuple[int, bool]] = set()
    for layer in known_layers(module):
        if layer.reads == "hidden":
            state = layer.block, "ffn" in layer.gives
            if state in heard:
                continue
            heard.add(state)
        place = 0 if is_transposed(layer.layer) else 1
        found.append((layer.layer, axes[f"{layer.name}.weight"][place]))
    head = module.get_output_embeddings()
    _, read = axes.get(f"{_name_of(module, head)}.weight", (None, None))
    found.append((head, read))
    return [(layer, axis) for layer, axis in found if axis is not None]


def _activity(states: Any, axis: Axis, weights: Any) -> Any:
    """Sum over tokens of each unit's l2 norm: (..., coordinates) to (units,) float64."""
    import torch

    squares = states.reshape(-1, states.shape[-1]).double() ** 2 * weights
    if axis.space.kind != "kv_groups":  # every coordinate is a unit of its own
        return squares.sqrt().sum(dim=0)
    of_units = torch.zeros(len(squares), int(axis.units.max()) + 1, dtype=torch.float64)
    return of_units.index_add_(1, axis.units, squares).sqrt().sum(dim=0)


def _name_of(module: Any, part: Any) -> str:
    names: dict[int, str] = {id(other): name for name, other in module.named_modules()}
    return names[id(part)]
