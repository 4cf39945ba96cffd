"""The demo model with an int8 cache, far beyond the length that it was calibrated at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import demo
from artifacts import texts
from artifacts.manifest import GraphSpec
from artifacts.packed_session import PackedSession
from artifacts.reference import log_softmax
from artifacts.session import Row
from optimizers import kv_scales, linears
from optimizers.attention import read_attentions
from optimizers.export import export
from optimizers.kv_graph import quantize_cache
from optimizers.kv_scales import CacheScales, find_scales
from optimizers.tokenizer_files import load_tokenizer

WINDOW, WINDOWS = 256, 48  # of calibration
LENGTH, FROM = 1024, 600  # of a long context, and where it is compared


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphSpec]:
    """The demo model's graph."""
    done = export(demo.path(), tmp_path_factory.mktemp("demo-kv"), progress=lambda *_: None)
    return done.model, done.graph


def _documents(name: str) -> list[np.ndarray]:
    tokenizer = load_tokenizer(demo.path())
    found = texts.read(str(demo.path().parent / name))
    return [np.array(tokenizer.encode(text).ids) for text in found]


def _log_probs(model: Path, graph: GraphSpec) -> np.ndarray:
    """Of long held-out documents' last positions, written in chunks as a server does."""
    session = PackedSession(model, graph, slots=1, max_length=LENGTH, threads=2)
    found = []
    for tokens in [one[:LENGTH] for one in _documents("heldout.jsonl") if one.size > LENGTH][:6]:
        for start in range(0, FROM, 200):
            session.step([Row(0, start, tokens[start : start + 200], 0)])
        scores = session.step([Row(0, FROM, tokens[FROM:], LENGTH - FROM)])
        found.append(log_softmax(scores.logits))
    return np.concatenate(found)


def _kl(first: np.ndarray, second: np.ndarray) -> float:
    return float((np.exp(first) * (first - second)).sum(axis=-1).mean())


@pytest.mark.slow
def test_scales_hold_beyond_the_calibrated_length(
    exported: tuple[Path, GraphSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs' lengths lose less than plain maxima do, and those less than one scale per layer."""
    model, graph = exported
    float_cache = _log_probs(model, graph)
    windows = [one[:WINDOW] for one in _documents("calibration.jsonl") if one.size >= WINDOW]
    attentions = read_attentions(linears.load(model.parent), graph)

    def scales() -> list[CacheScales]:
        session = PackedSession(model, graph, slots=1, max_length=WINDOW, threads=2)
        return find_scales(session, attentions, windows[:WINDOWS], lambda _: None)

    def lost(name: str, found: list[CacheScales]) -> float:
        target = tmp_path / name
        target.mkdir()
        edited = linears.load(model.parent)
        served = quantize_cache(edited, graph, read_attentions(edited, graph), found)
        linears.save(edited, target)
        return _kl(float_cache, _log_probs(target / "model.onnx", served))

    by_length = scales()
    per_layer = [
        CacheScales(*(np.full_like(part, part.max()) for part in (one.keys, one.values)))
        for one in by_length
    ]
    original = kv_scales.magnitudes
    monkeypatch.setattr(kv_scales, "magnitudes", lambda states, _: original(states, None))
    kl = lost("length", by_length)
    assert kl < 4e-4
    assert kl < lost("maxima", scales())
    assert 1.3 * kl < lost("per-layer", per_layer)
