"""The ways of quantizing on the demo model, by what they lose on its held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]


def _kl(loss: Any, algorithm: str) -> float:
    kl: float = loss("quantize", method="weight_only", algorithm=algorithm).kl_mean
    return kl


def test_making_up_for_errors_loses_least_at_4_bits(loss: Any) -> None:
    """GPTQ, which alone reads a text, loses less than half of what the others do."""
    gptq = _kl(loss, "gptq")
    assert gptq < 0.5 * min(_kl(loss, other) for other in ("rtn", "k_quant", "hqq"))


def test_a_head_with_bytes_of_its_own_is_fitted_too(loss: Any) -> None:
    """At 4 bits beside embeddings of 8; one that shares theirs is rounded, and so are they."""
    fields = {"method": "weight_only", "algorithm": "gptq", "lm_head_bits": 4}
    own = loss("quantize", **fields).kl_mean
    shared = loss("quantize", **fields, embedding_bits=4).kl_mean
    assert own < 0.7 * shared


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


@pytest.fixture(scope="module")
def smoothed(demo_source: Any, demo_windows: Any, tmp_path_factory: Any) -> Any:
    """Give what smooths the demo model and writes its graph; gives the folder."""
    from optimizers.export import export
    from optimizers.spec import parse_chain
    from optimizers.stage import Work

    def smooth(**fields: Any) -> Path:
        target, graph = (tmp_path_factory.mktemp(name) for name in ("smoothed", "graph"))
        (stage,) = parse_chain("chain", [{"smooth": fields}]).stages
        work = Work(demo_source.folder, None, demo_source, pytest.fail, lambda _: demo_windows)
        stage.apply(work, target, lambda *_: None)
        export(target, graph, progress=lambda *_: None)
        return graph

    return smooth


def test_smoothquant_helps_where_activations_are_rounded(loss: Any, smoothed: Any) -> None:
    """Static int8 loses less, and less than half where everything is covered."""
    graph = smoothed(method="smoothquant")
    for fields, share in (({}, 0.95), ({"range": "minmax"}, 0.5)):
        before = loss("quantize", method="static", **fields).kl_mean
        after = loss("quantize", method="static", origin=graph, **fields).kl_mean
        assert after < share * before


def test_awq_helps_where_blocks_are_large(loss: Any, smoothed: Any) -> None:
    """Blocks of 128 gain a tenth; blocks of 32 hardly anything, on so small a model."""
    graph = smoothed(method="awq", block_size=128)
    fields = {"method": "weight_only", "block_size": 128}
    assert loss("quantize", origin=graph, **fields).kl_mean < loss("quantize", **fields).kl_mean
