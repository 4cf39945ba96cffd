"""Takes a text through a torch module once, and stops before every linear layer of its blocks.

A visitor sees what flows into a layer and may change the layer's weight before it computes: what
comes later sees the change. So a method that works layer by layer costs one pass, and never holds
more activations than those of the layer at hand. Knows nothing of what visitors do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizers.errors import StageError
from optimizers.linear_layers import block_layers, is_transposed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Visited:
    """A linear layer with what flows into it.

    Attributes:
        name: Its path in the module.
        weight: (outputs, inputs) float32, a view: writing into it changes the layer.
        inputs: (tokens, inputs) float32.
    """

    name: str
    weight: Any
    inputs: Any


def visit_layers(
    module: Any, documents: Sequence[NDArray[np.int64]], visit: Callable[[Visited], None]
) -> None:
    """Visit each linear layer of the decoder's blocks once, in the order of computation.

    Args:
        module: In float32.
        documents: Token ids, all of one length.
        visit: Called before the layer computes.

    Raises:
        StageError: A layer is not used by the text, so that nothing is known about it.
    """
    import numpy as np
    import torch

    layers = block_layers(module)
    waiting = {name for name, _ in layers}
    handles = []

    def stop_at(name: str, layer: Any) -> Callable[[Any, tuple[Any, ...]], None]:
        def before(_layer: Any, given: tuple[Any, ...]) -> None:
            if name in waiting:  # a layer that is used twice is visited at its first use
                waiting.discard(name)
                weight = layer.weight.data
                inputs = given[0].reshape(-1, given[0].shape[-1])
                visit(Visited(name, weight.T if is_transposed(layer) else weight, inputs))

        return before

    try:
        for name, layer in layers:
            handles.append(layer.register_forward_pre_hook(stop_at(name, layer)))
        with torch.no_grad():
            ids = torch.from_numpy(np.stack(documents))
            # Without the head: nobody asks for logits, which would be the largest tensor of all.
            module.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if waiting:
        raise StageError(
            f"{len(waiting)} layers (for example {min(waiting)}) see nothing of the calibration "
            "text.",
            remedy="Use method: magnitude, which needs no text.",
        )
