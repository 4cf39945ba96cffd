"""The ways of quantizing on the demo model, by what they lose on its held-out text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("one_torch_thread")


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


def test_ranges_of_real_text_lose_less_than_those_of_random_tokens(
    loss: Any, demo_windows: Any
) -> None:
    """A static range is only as good as the text that it was seen on.

    With minmax it is the other way round: real text shows larger outliers than random tokens do,
    and covering them coarsens everything else, which is why it is not the default.
    """
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 4096, window.size) for window in demo_windows]
    real = loss("quantize", method="static")
    random = loss("quantize", method="static", windows=noise)
    assert real.kl_mean < random.kl_mean
    assert real.kl_p99 < random.kl_p99


def test_constant_scales_lose_more_than_a_row_s_own(loss: Any) -> None:
    """What static saves while serving it pays for; covering everything costs most."""
    dynamic, static, covering = (
        loss("quantize", **fields).kl_mean
        for fields in (
            {"method": "dynamic"},
            {"method": "static"},
            {"method": "static", "range": "minmax"},
        )
    )
    assert dynamic < static < covering
