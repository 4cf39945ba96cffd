"""The int8 key-value cache: its scales, the kernel, and what becomes of whole models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.manifest import GraphSpec
from artifacts.packed_session import PackedSession
from artifacts.protocol import Built
from artifacts.session import Row
from artifacts.session_factory import open_session
from artifacts.store import Store
from benchmarks import zoo
from optimizers import kv_kernel, linears
from optimizers.attention import Attention, Rotary, read_attentions
from optimizers.errors import StageError
from optimizers.export import export
from optimizers.kv_scales import CacheScales, find_scales, magnitudes
from optimizers.spec import parse_chain
from tests.optimizers.conftest import Child
from tests.optimizers.onnx_stage import random_windows, run_stage

POSITIONS = 512


def _rotary(pairs: int, *, interleaved: bool = False) -> Rotary:
    angles = np.outer(np.arange(POSITIONS), 10_000.0 ** -(np.arange(pairs) / pairs))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return Rotary(cos, sin, interleaved)


def _attention(**changes: Any) -> Attention:
    usual = Attention(
        node=None,
        heads=4,
        kv_heads=2,
        head_dim=32,
        scale=32**-0.5,
        softcap=0.0,
        window=None,
        rotary=_rotary(16),
    )
    return replace(usual, **changes)


def _scales(attention: Attention) -> CacheScales:
    rng = np.random.default_rng(5)
    shape = attention.kv_heads, attention.head_dim
    keys, values = rng.uniform(0.01, 0.1, (2, *shape)).astype(np.float32)
    return CacheScales(keys, values)


@pytest.mark.parametrize(
    "attention",
    [
        _attention(),
        _attention(kv_heads=4, rotary=None),
        _attention(window=5),
        _attention(softcap=2.0),
        _attention(window=4096, softcap=2.0, head_dim=48, rotary=_rotary(8)),
        _attention(head_dim=128, kv_heads=1, rotary=_rotary(64, interleaved=True)),
        _attention(head_dim=80, rotary=None),
        _attention(
            heads=2, rotary=Rotary(_rotary(16).cos[:40], _rotary(16).sin[:40], interleaved=False)
        ),
    ],
    ids=lambda attention: attention.told(),
)
def test_the_kernel_computes_what_the_definition_says(attention: Attention) -> None:
    """Ragged, in chunks, in place and past windows, on integers that numpy dequantizes."""
    assert kv_kernel.check_kernel(attention, _scales(attention)) < kv_kernel.TOLERANCE


@pytest.mark.parametrize(
    ("served", "wanted"),
    [
        ({"window": 5}, {"window": 6}),
        ({"softcap": 0.0}, {"softcap": 2.0}),
        ({"scale": 0.2}, {"scale": 0.21}),
        ({"rotary": None}, {"rotary": _rotary(16)}),
        ({"rotary": _rotary(16)}, {"rotary": _rotary(16, interleaved=True)}),
    ],
)
def test_a_kernel_that_computes_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, served: dict[str, Any], wanted: dict[str, Any]
) -> None:
    """Each part of the definition is compared: a kernel without it does not pass."""
    right = kv_kernel._open

    def wrong(attention: Attention, scales: CacheScales) -> Any:
        return right(replace(attention, **served), scales)

    monkeypatch.setattr(kv_kernel, "_open", wrong)
    attention = _attention(**wanted)
    with pytest.raises(StageError, match="4 heads of 32 over 2") as caught:
        kv_kernel.check_kernel(attention, _scales(attention))
    assert caught.value.path == "method"


def test_a_kernel_that_mixes_scales_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache holds is compared, not only what comes out."""
    right = kv_kernel._open

    def wrong(attention: Attention, scales: CacheScales) -> Any:
        return right(attention, CacheScales(scales.values, scales.keys))

    monkeypatch.setattr(kv_kernel, "_open", wrong)
    with pytest.raises(StageError, match="writes other keys"):
        kv_kernel.check_kernel(_attention(), _scales(_attention()))


def test_a_head_that_the_kernel_does_not_know_is_refused() -> None:
    """The message tells the sizes and what ONNX Runtime says."""
    attention = _attention(head_dim=24, rotary=_rotary(12))
    with pytest.raises(StageError, match=r"heads of 24 .*multiple of 16"):
        kv_kernel.check_kernel(attention, _scales(attention))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("pairs", [16, 8])
def test_keys_stay_in_range_at_every_position(*, interleaved: bool, pairs: int) -> None:
    """Scales of keys seen at a few positions hold wherever they are turned to."""
    rotary = _rotary(pairs, interleaved=interleaved)
    keys = np.random.default_rng(1).standard_normal((2, 40, 32)).astype(np.float32)
    seen = kv_kernel.rotate(keys, np.arange(40), rotary).astype(np.float32)
    allowed = magnitudes(seen, rotary)[:, None] * (1 + 1e-6)
    everywhere = [
        np.abs(kv_kernel.rotate(keys, np.full(40, position), rotary))
        for position in range(0, POSITIONS, 7)
    ]
    assert all((turned <= allowed).all() for turned in everywhere)
    # Without the pairs' lengths, the same keys leave the range.
    assert any((turned > magnitudes(seen, None)[:, None]).any() for turned in everywhere)


def test_scales_are_those_of_the_torch_module(
    tiny_llama_folder: Path, tiny_llama_export: tuple[Path, GraphSpec]
) -> None:
    """The same maxima, taken from transformers' own cache."""
    import torch
    from transformers import AutoModelForCausalLM

    model, graph = tiny_llama_export
    windows = random_windows(graph.vocab_size, count=6)
    attentions = read_attentions(linears.load(model.parent), graph)
    session = PackedSession(model, graph, slots=1, max_length=64, threads=1)
    found = find_scales(session, attentions, windows, lambda _: None)

    module = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        cache = module(torch.tensor(np.stack(windows)), use_cache=True).past_key_values
    for layer, scales in enumerate(found):
        keys = cache.layers[layer].keys.numpy()  # (documents, heads, tokens, dim)
        values = cache.layers[layer].values.numpy()
        half = keys.shape[-1] // 2
        lengths = np.sqrt(keys[..., :half] ** 2 + keys[..., half:] ** 2).max(axis=(0, 2))
        expected = np.concatenate([lengths, lengths], axis=-1) / 127
        np.testing.assert_allclose(scales.keys, expected, rtol=1e-3)
        np.testing.assert_allclose(scales.values, np.abs(values).max(axis=(0, 2)) / 127, rtol=1e-3)


def test_a_cache_in_int8_is_close_to_one_in_float32(
    tiny_llama_export: tuple[Path, GraphSpec], tiny_llama_int8_cache: tuple[Path, GraphSpec]
) -> None:
    """Close, and not the same: the graph does round."""
    tokens = random_windows(tiny_llama_export[1].vocab_size, count=1, length=200)[0]
    given = []
    for model, graph in (tiny_llama_export, tiny_llama_int8_cache):
        session = PackedSession(model, graph, slots=1, max_length=200, threads=1)
        given.append(session.step([Row(0, 0, tokens, 200)]).logits.copy())
    off = np.abs(given[0] - given[1]).max() / np.abs(given[0]).max()
    assert 1e-4 < off < 2e-2


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen3"])
def test_other_architectures(tmp_path: Path, name: str) -> None:
    """Without rotation, with windows, and with norms of keys: all are checked and told."""
    exported = export(zoo.write_model(tmp_path / "model", name), tmp_path, progress=lambda *_: None)
    target = tmp_path / "int8"
    target.mkdir()
    outcome = run_stage({"method": "kv_cache"}, exported.model, exported.graph, target)
    assert outcome.graph is not None
    assert {layer.dtype for layer in outcome.graph.layers} == {"int8"}
    assert "bytes of cache per token instead of" in outcome.notes[0]


def test_weights_in_few_bits_and_the_cache_in_int8(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """The cache is calibrated on what the quantized weights write, and runs beside them."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "both").mkdir()
    model, graph = tiny_llama_export
    run_stage({"method": "weight_only"}, model, graph, tmp_path / "weights")
    weights = tmp_path / "weights" / "model.onnx"
    outcome = run_stage({"method": "kv_cache"}, weights, graph, tmp_path / "both")
    assert outcome.graph is not None
    operators = {node.op_type for node in linears.load(tmp_path / "both").graph}
    assert "MatMulNBits" in operators
    session = PackedSession(tmp_path / "both" / "model.onnx", outcome.graph, slots=1, max_length=9)
    assert np.isfinite(session.step([Row(0, 0, np.arange(9), 1)]).logits).all()


def test_scales_that_do_not_fit_are_refused(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache in which everything is clipped does not get past the comparison."""
    from optimizers import kv_scales

    monkeypatch.setattr(kv_scales, "LARGEST", 127 * 60)
    with pytest.raises(StageError, match="predictions move by"):
        run_stage({"method": "kv_cache"}, *tiny_llama_export, tmp_path)


def test_a_graph_without_a_cache_in_place_is_refused(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """Optimum's exchange form keeps no cache that could be quantized."""
    model, graph = tiny_llama_export
    plain = graph.model_copy(update={"form": "plain"})
    with pytest.raises(StageError, match="no cache in place"):
        run_stage({"method": "kv_cache"}, model, plain, tmp_path)


def test_attention_that_is_not_known_is_refused(tiny_llama_export: tuple[Path, GraphSpec]) -> None:
    """A sink that the check does not compute is named."""
    import onnx_ir

    model = linears.load(tiny_llama_export[0].parent)
    node = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    sink = linears.new_weight(model, "sink", np.zeros(4, np.float32))
    node.replace_input_with(11, sink)
    node.attributes["smooth_softmax"] = onnx_ir.AttrInt64("smooth_softmax", 1)
    with pytest.raises(StageError, match="smooth_softmax, input 11"):
        read_attentions(model, tiny_llama_export[1])


@pytest.mark.parametrize(
    ("chain", "told"),
    [
        ([{"method": "kv_cache"}, {"method": "weight_only"}], "weights come first"),
        ([{"method": "kv_cache"}, {"method": "kv_cache"}], "cannot be in a chain"),
        ([{"method": "kv_cache", "bits": 4}], "bits"),
    ],
)
def test_the_order_is_weights_then_cache(chain: list[dict[str, Any]], told: str) -> None:
    """The scales must fit the weights that will be served."""
    (error,) = parse_chain("chain", [{"quantize": item} for item in chain]).errors
    assert told in error.message or told in error.path


def test_a_cache_alone_or_after_weights_is_a_chain() -> None:
    """Both read the calibration text, and only for the cache."""
    for first in ([], [{"quantize": {"method": "dynamic"}}]):
        chain = parse_chain("chain", [*first, {"quantize": {"method": "kv_cache"}}])
        assert not chain.errors
        assert [stage.calibrates for stage in chain.stages] == [False] * len(first) + [True]


def test_a_build_serves_what_it_measured(
    child: Child, tiny_llama_folder: Path, tmp_path: Path, evaluation: Path
) -> None:
    """The artifact knows its cache's form, and every step of it is measured through that cache."""
    text = tmp_path / "calibration.jsonl"
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    parts = ["\n".join(lines[start : start + 40]) for start in range(0, 240, 10)]
    text.write_text("".join(json.dumps({"text": part}) + "\n" for part in parts))
    chain = [{"quantize": {"method": "weight_only"}}, {"quantize": {"method": "kv_cache"}}]
    given = {"calibration": {"text": str(text)}, "evaluation": {"text": str(evaluation)}}
    plan = child.plan(str(tiny_llama_folder), {"lean": chain}, **given)
    assert not plan.errors
    events = child.build(str(tiny_llama_folder), plan.variants["lean"], **given)
    assert isinstance(events[-1], Built), events[-1]
    stored = Store(child.store).open(events[-1].artifact)
    graph = stored.manifest.graph
    assert {layer.dtype for layer in graph.layers} == {"int8"}
    session = open_session(stored.path("model.onnx"), graph, slots=1, max_length=64)
    assert session.kv_bytes_per_token == 2 * 2 * 2 * 16  # layers, heads, key and value, head
    weights, record = stored.manifest.lineage[-2:]
    assert record.method == "kv_cache"
    assert record.quality is not None
    assert weights.quality is not None
    moved = abs(record.quality.kl_mean - weights.quality.kl_mean)
    assert 0 < moved < 0.1 * weights.quality.kl_mean
    assert "bytes of cache per token" in record.notes[0]
