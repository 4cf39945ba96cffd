"""``smooth: {method: awq}``: give the weights that matter most the finest steps.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023
(https://arxiv.org/abs/2306.00978): a channel's scale is the mean size of its activations over the
calibration text, to a power that is tried out for each place: the one with which the layers'
outputs change least when their weights are rounded. A power of 0 is no scale at all, so nothing is
lost. Owns the search. Knows nothing of where scales are folded in.

Measured on the demo model (mean KL to the original in nats, 7,389 positions): 4 bits in blocks of
128 0.0204 where it was 0.0231, in blocks of 32 0.0138 where it was 0.0140. Nothing is gained before
gptq (0.0085 and 0.0054), which makes up for the same errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizers.foldings import Folding, weight_of
from optimizers.smoothing import Smoothing
from optimizers.stage import Outcome, Report, Work

_POWERS = 21  # from 0 to 1
_LEAST = 1e-4  # of the largest; no channel is scaled down without bound


class SmoothAwq(Smoothing):
    """Prepare weights for being rounded to few bits, for quantize method weight_only."""

    version: ClassVar[int] = 1

    method: Annotated[
        Literal["awq"],
        Field(
            description="awq: scale up the channels with the largest activations, as far as "
            "rounding the weights then costs less."
        ),
    ] = "awq"
    bits: Annotated[
        Literal[4, 8],
        Field(description="Bits that the weights will have: those of quantize, 4 or 8."),
    ] = 4
    block_size: Annotated[
        Literal[16, 32, 64, 128, 256],
        Field(
            description="Weights that will share a scale: the block_size of quantize, 16, 32, 64, "
            "128 or 256."
        ),
    ] = 32

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Fold scales in; embeddings and lm_head are left alone."""
        return self.smooth(work, target, report, self._choose)

    def _choose(self, folding: Folding, inputs: Any) -> Any:
        weights = [weight_of(layer) for _, layer in folding.consumers]
        return search(folding, inputs, weights, bits=self.bits, block_size=self.block_size)


def search(folding: Folding, inputs: Any, weights: list[Any], *, bits: int, block_size: int) -> Any:
    """Try powers of the channels' mean sizes; (channels,) scales of the best."""
    import torch

    from optimizers import obs

    hessian = obs.hessian(inputs).float()
    sizes = folding.mean(inputs.abs().mean(dim=0))
    sizes = sizes.clamp(min=max(float(sizes.max()) * _LEAST, torch.finfo(sizes.dtype).tiny))
    best, least = torch.ones_like(sizes), float("inf")
    for power in range(_POWERS):
        scales = sizes ** (power / (_POWERS - 1))
        scales = scales / (scales.max() * scales.min()).sqrt()
        spread = scales[folding.source_of]
        lost = sum(
            error(weight, spread, hessian, bits=bits, block_size=block_size) for weight in weights
        )
        if lost < least:
            best, least = scales, lost
    return best


def error(weight: Any, scales: Any, hessian: Any, *, bits: int, block_size: int) -> float:
    """How much outputs change when a weight is rounded with its inputs scaled: a sum of squares.

    Args:
        weight: (outputs, inputs) float32.
        scales: (inputs,).
        hessian: ``X^T X`` of the inputs, (inputs, inputs).
        bits: Of the rounded weight.
        block_size: Of its blocks along the inputs.
    """
    import torch

    from optimizers.block_quantization import quantize_blocks

    blocks = quantize_blocks(
        (weight * scales).numpy(),
        bits=bits,
        block_size=block_size,
        is_symmetric=False,
        algorithm="rtn",
    )
    off = torch.from_numpy(blocks.restore(weight.shape[1])) / scales - weight
    return float(((off @ hessian) * off).sum())
