"""The range of values that one scale for a whole activation covers, seen over a text.

Owns the choice: all that was seen, all but the rarest, or what rounds with the least squared error.
The rarest are told by ONNX Runtime's own ``HistogramCollector``; its calibrators around that run
the whole graph and keep every activation of every document, so here values come as they are
reached. Its third way, least entropy, is left out: on the demo model it loses twenty times as much
as the others (mean KL 0.099 nats), since it sees no difference between values that are clipped a
little and by far. Knows nothing of graphs.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Choice = Literal["mse", "percentile", "minmax"]
_LARGEST = 255
_BINS = 8192  # enough that a bin's middle stands for its values
_SHARES = np.linspace(0.02, 1.0, 50)  # of either end of the range, that are tried
_BYTE = np.array([0, _LARGEST], np.uint8)


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a value becomes an unsigned byte: ``clip(round(x / scale) + zero_point, 0, 255)``."""

    scale: np.float32
    zero_point: np.uint8


def choose_rounding(
    parts: Sequence[NDArray[np.float32]], choice: Choice, percentile: float
) -> Rounding:
    """Cover the range of a text's values; zero is always in it, and comes back exactly.

    Args:
        parts: The values, in any shape.
        choice: How the range is found.
        percentile: With that choice, the share of values that is covered; of the rest, half lies
            on either side.
    """
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    match choice:
        case "minmax":
            low, high = _ends(parts)
        case "percentile":
            low, high = _without_the_rarest(parts, percentile)
        case "mse":
            low, high = _least_squares(parts)
    zero_point, scale = compute_scale_zp(np.float32(low), np.float32(high), *_BYTE)
    return Rounding(scale=np.float32(scale), zero_point=np.uint8(zero_point))


def _ends(parts: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    low = min(float(part.min()) for part in parts)
    high = max(float(part.max()) for part in parts)
    return min(low, 0.0), max(high, 0.0)


def _without_the_rarest(
    parts: Sequence[NDArray[np.float32]], percentile: float
) -> tuple[float, float]:
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method="percentile",
        symmetric=False,
        num_bins=_BINS,
        num_quantized_bins=_LARGEST + 1,
        percentile=percentile,
        scenario="same",
    )
    with redirect_stdout(io.StringIO()):  # it prints what it does
        # At once: given in parts, it adds bins without bound whenever larger values come.
        collector.collect({"": np.concatenate([part.ravel() for part in parts])})
        low, high, *_ = collector.compute_collection_result()[""]
    return float(low), float(high)


def _least_squares(parts: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """Weigh what is clipped against how coarse the rest becomes.

    Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient Inference", 2019
    (https://arxiv.org/abs/1902.06822). The square of what a value is off by is a twelfth of the
    squared step inside the range, and that of its distance to the range outside.
    """
    low, high = _ends(parts)
    if low == high:
        return low, high
    edges = np.linspace(low, high, _BINS + 1)
    counts = np.sum([np.histogram(part, edges)[0] for part in parts], axis=0)
    middles = (edges[:-1] + edges[1:]) / 2
    lows, highs = low * _SHARES, high * _SHARES
    below = np.square(np.minimum(middles - lows[:, None], 0)) @ counts
    above = np.square(np.maximum(middles - highs[:, None], 0)) @ counts
    steps = (highs[None, :] - lows[:, None]) / _LARGEST
    errors = below[:, None] + above[None, :] + counts.sum() * np.square(steps) / 12
    left, right = np.unravel_index(int(errors.argmin()), errors.shape)
    return float(lows[left]), float(highs[right])
