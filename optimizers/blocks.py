"""The decoder blocks of a torch module: finding them, taking some out, seeing what each changes.

Owns what must change beside the blocks themselves: the config's count and its lists with an entry
per layer. Knows nothing of why a block goes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from optimizers.errors import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def decoder_blocks(module: Any) -> Any:
    """The list of blocks.

    Raises:
        StageError: The architecture has no such list.
    """
    from torch.nn import ModuleList

    count = module.config.get_text_config().num_hidden_layers
    found = [
        part
        for part in module.base_model.modules()
        if isinstance(part, ModuleList) and len(part) == count
    ]
    if len(found) != 1:
        raise StageError(
            "This architecture does not keep its layers in one list.",
            remedy="Leave restructure out for this model.",
        )
    return found[0]


def drop_blocks(module: Any, dropped: Collection[int]) -> None:
    """Take blocks out of a module in place, so that saved and loaded again it is the same.

    Args:
        module: A causal language model.
        dropped: Indices of blocks, of those that there are.
    """
    blocks = decoder_blocks(module)
    count = len(blocks)
    kept = [index for index in range(count) if index not in dropped]
    config = module.config.get_text_config()
    for name, value in list(vars(config).items()):
        # Kinds of attention, of feed-forward, whether positions rotate: an entry per layer.
        if isinstance(value, list) and len(value) == count:
            setattr(config, name, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)
    left = [blocks[index] for index in kept]
    for place, block in enumerate(left):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place
    del blocks[:]
    blocks.extend(left)


def block_influences(module: Any, documents: Sequence[NDArray[np.int64]]) -> list[float]:
    """How much each block turns what flows through it: 1 - mean cosine of its output and input.

    Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
    2024 (https://arxiv.org/abs/2403.03853).

    Args:
        module: In float32.
        documents: Token ids, all of one length.
    """
    import numpy as np
    import torch

    influences: list[float] = []

    def after(_block: Any, given: tuple[Any, ...], output: Any) -> None:
        before = given[0].double()
        behind = (output[0] if isinstance(output, tuple) else output).double()
        similar = torch.nn.functional.cosine_similarity(before, behind, dim=-1)
        influences.append(1.0 - float(similar.mean()))

    handles = [block.register_forward_hook(after) for block in decoder_blocks(module)]
    try:
        with torch.no_grad():
            module.base_model(input_ids=torch.from_numpy(np.stack(documents)), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return influences
