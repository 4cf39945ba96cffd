"""Scales that move between a layer's inputs and whatever makes those inputs, which changes nothing.

Multiplying the weights of an input channel and dividing what arrives there leaves every output as
it was. Owns that arithmetic for what may make inputs: a norm, or the last outputs of a linear
layer. Knows nothing of where in a model such pairs are, and of how scales are chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from optimizers.errors import StageError
from optimizers.linear_layers import is_transposed

Kind = Literal["norm", "value", "up"]
Named = tuple[str, Any]
_NOTHING = 1e-4  # largest that a norm gives whose weight is cancelled


@dataclass(frozen=True, slots=True)
class Folding:
    """One place where scales may be folded in.

    Attributes:
        kind: What makes the inputs.
        name: Its path in the module.
        consumers: The linear layers that read the inputs, by name, in the order of computation.
        source_of: (inputs,) int64: by which of the source's channels each input is made.
        divide: Divides what the source makes by (channels,).
        small: The source's vectors, which folding back might not give back exactly.
    """

    kind: Kind
    name: str
    consumers: tuple[Named, ...]
    source_of: Any
    divide: Callable[[Any], None]
    small: tuple[Any, ...]

    @property
    def channels(self) -> int:
        """How many scales there are."""
        return int(self.source_of.max()) + 1

    def fold(self, scales: Any) -> None:
        """Divide the source by (channels,) positive scales and multiply the consumers' weights."""
        self.divide(scales)
        for _, layer in self.consumers:
            weight_of(layer).mul_(scales[self.source_of])

    def most(self, values: Any) -> Any:
        """The largest of (inputs,) for each channel."""
        return values.new_zeros(self.channels).scatter_reduce(0, self.source_of, values, "amax")

    def mean(self, values: Any) -> Any:
        """The mean of (inputs,) for each channel."""
        counts = values.new_zeros(self.channels).index_add(0, self.source_of, values * 0 + 1)
        return values.new_zeros(self.channels).index_add(0, self.source_of, values) / counts


def weight_of(layer: Any) -> Any:
    """A linear layer's weight as a view (outputs, inputs)."""
    weight = layer.weight.data
    return weight.T if is_transposed(layer) else weight


def behind_norm(norm: Named, consumers: tuple[Named, ...]) -> Folding:
    """A norm and the linear layers that read what it gives.

    Raises:
        StageError: Its weight does not multiply what it gives.
    """
    import torch

    name, layer = norm
    vectors = tuple(
        one.data for one in (layer.weight, getattr(layer, "bias", None)) if one is not None
    )
    return Folding(
        "norm",
        name,
        consumers,
        torch.arange(layer.weight.numel()),
        partial(_divide_norm, vectors, _offset(layer)),
        vectors,
    )


def behind_linear(kind: Kind, source: Named, consumer: Named, heads: int, width: int) -> Folding:
    """The last ``heads * width`` outputs of a layer, which another reads, repeated head by head."""
    import torch

    channels = heads * width
    repeats = weight_of(consumer[1]).shape[1] // channels
    source_of = torch.arange(channels).view(heads, 1, width).expand(heads, repeats, width)
    return Folding(
        kind,
        source[0],
        (consumer,),
        source_of.reshape(-1),
        partial(_divide_outputs, source[1], channels),
        () if source[1].bias is None else (source[1].bias.data,),
    )


def _offset(norm: Any) -> float:
    """What a norm adds to its weight before it multiplies: 1 for Gemma's, 0 for others.

    Raises:
        StageError: It does neither.
    """
    import torch

    weight = norm.weight.data
    before, probe = weight.clone(), torch.linspace(-1, 2, weight.numel())[None]
    bias = getattr(norm, "bias", None)
    offsets = []
    with torch.no_grad():
        for offset in (0.0, 1.0):
            weight.fill_(-offset)  # nothing but the bias is left where they cancel out
            left = norm(probe) - (0.0 if bias is None else bias)
            if float(left.abs().max()) < _NOTHING:
                offsets.append(offset)
        weight.copy_(before)
    if len(offsets) == 1:
        return offsets[0]
    raise StageError(
        f"{type(norm).__name__} is no norm that scales could be folded into.",
        remedy="Leave smooth out for this model.",
    )


def _divide_norm(vectors: tuple[Any, ...], offset: float, scales: Any) -> None:
    weight, *bias = vectors
    weight.add_(offset).div_(scales).sub_(offset)
    for vector in bias:
        vector.div_(scales)


def _divide_outputs(layer: Any, channels: int, scales: Any) -> None:
    weight_of(layer)[-channels:].div_(scales[:, None])
    if layer.bias is not None:
        layer.bias.data[-channels:].div_(scales)
