"""The ways of quantizing on the demo model, by what they lose on its held-out text."""

from __future__ import annotations

from typing import Any


def _kl(loss: Any, algorithm: str) -> float:
    kl: float = loss("quantize", method="weight_only", algorithm=algorithm).kl_mean
    return kl


def test_making_up_for_errors_loses_least_at_4_bits(loss: Any) -> None:
    """GPTQ, which alone reads a text, loses less than half of what the others do."""
    gptq = _kl(loss, "gptq")
    assert gptq < 0.5 * min(_kl(loss, other) for other in ("rtn", "k_quant", "hqq"))


def test_searching_a_scale_loses_no_more_than_rounding_at_4_bits(loss: Any) -> None:
    """Both searches, each with its own measure of a block's error."""
    assert _kl(loss, "k_quant") <= _kl(loss, "rtn")
    assert _kl(loss, "hqq") <= _kl(loss, "rtn")
