"""``smooth: {method: smoothquant}``: move what makes activations hard to round into the weights.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", 2022 (https://arxiv.org/abs/2211.10438): a channel's scale is
max|X|^alpha / max|W|^(1 - alpha), over the calibration text and all layers that read the channel.
Beside norms, which the paper smooths, scales go behind attention's values and feed-forward layers.
Owns the formula. Knows nothing of where scales are folded in.

Measured on the demo model (mean KL to the original in nats, 7,389 positions): static 0.0024 where
it was 0.0042; dynamic 0.00054 where it was 0.00055, with gptq
0.00043 where it was 0.00046; on a quarter of the calibration text, static with
range minmax 0.0037 where it was 0.0127, and 0.0025 with alpha 0.8. Weights become harder to round:
4 bits in blocks of 32 0.0153, before 0.0140.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizers.foldings import Folding, weight_of
from optimizers.smoothing import Smoothing
from optimizers.stage import Outcome, Report, Work


class SmoothQuant(Smoothing):
    """Make activations easier to round to int8, for quantize methods dynamic and static."""

    version: ClassVar[int] = 1

    method: Annotated[
        Literal["smoothquant"],
        Field(
            description="smoothquant: share each channel's size between activations and weights, "
            "for int8 activations."
        ),
    ]
    alpha: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="How much of it goes to the weights, 0 to 1; more where activations have "
            "larger outliers.",
        ),
    ] = 0.5

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Fold scales in; embeddings and lm_head are left alone."""
        return self.smooth(work, target, report, self._choose)

    def _choose(self, folding: Folding, inputs: Any) -> Any:
        weights = [weight_of(layer) for _, layer in folding.consumers]
        return scales(folding, inputs, weights, self.alpha)


def scales(folding: Folding, inputs: Any, weights: list[Any], alpha: float) -> Any:
    """The formula: (channels,); 1 where a channel or all its weights are always zero."""
    import torch

    activations = folding.most(inputs.abs().amax(dim=0))
    columns = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    largest = folding.most(columns)
    silent = (activations == 0) | (largest == 0)
    return torch.where(silent, 1.0, activations**alpha / largest ** (1 - alpha))
