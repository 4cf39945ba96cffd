"""Tries a torch module without some of its blocks, and tells how far its predictions move.

Owns the skipping, which leaves the module as it was, and the original's predictions. Knows nothing
of how blocks to try are chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from optimizers.blocks import decoder_blocks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Trials:
    """One module on a few documents of equal length."""

    def __init__(self, module: Any, documents: Sequence[NDArray[np.int64]]) -> None:
        import numpy as np
        import torch

        self._module = module
        self._blocks = decoder_blocks(module)
        self._ids = torch.from_numpy(np.stack(documents))
        self._whole = self._predict()

    def divergence(self, skipped: Collection[int]) -> float:
        """KL(whole || without the skipped blocks), nats per position."""

        def skip(_block: Any, given: tuple[Any, ...], output: Any) -> Any:
            return (given[0], *output[1:]) if isinstance(output, tuple) else given[0]

        handles = [self._blocks[index].register_forward_hook(skip) for index in skipped]
        try:
            without = self._predict()
        finally:
            for handle in handles:
                handle.remove()
        return float((self._whole.exp() * (self._whole - without)).sum(dim=-1).mean())

    def _predict(self) -> Any:
        import torch

        with torch.no_grad():
            logits = self._module(input_ids=self._ids, use_cache=False).logits
            return torch.log_softmax(logits.float(), dim=-1)
