"""Weights in two forms: what each computes, against sessions that have one form alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.errors import CorruptArtifactError
from artifacts.manifest import Forms, GraphSpec
from artifacts.measure import SessionScorer
from artifacts.packed_session import PackedSession
from artifacts.protocol import Built
from artifacts.session import Row
from artifacts.store import Store
from optimizers import forms_sweep, linears
from optimizers.errors import StageError
from optimizers.forms_sweep import ROWS, rows_to_change
from optimizers.stages.weight_only import QuantizeWeightOnly
from tests.optimizers.conftest import Child
from tests.optimizers.onnx_stage import run_stage

SLOTS, LENGTH = 4, 64
# An activation beside the middle of two steps may be rounded to either, by float rounding before.
ROUNDING = 2e-2
Graph = tuple[Path, GraphSpec]
FIELDS = {"method": "weight_only", "block_size": 32}


@pytest.fixture(scope="module")
def by_role(tiny_llama_export: Graph, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Give the tiny Llama in two forms."""
    return _made(tiny_llama_export, tmp_path_factory.mktemp("by-role"), forms="by_role")


@pytest.fixture(scope="module")
def gpt2_export(gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Give a model whose head shares the embeddings."""
    from optimizers.export import export

    exported = export(gpt2_folder, tmp_path_factory.mktemp("gpt2"), progress=lambda *_: None)
    return exported.model, exported.graph


@pytest.fixture(scope="module")
def int8(tiny_llama_export: Graph, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Give the same, every step computed by the form for prompts, logits included."""
    patch = pytest.MonkeyPatch()
    patch.setattr(forms_sweep, "rows_to_change", lambda *_, **__: 1)
    with patch.context():
        return _made(tiny_llama_export, tmp_path_factory.mktemp("int8"), forms="adaptive")


def _made(export: Graph, folder: Path, **fields: Any) -> Graph:
    outcome = run_stage({**FIELDS, **fields}, *export, folder)
    assert outcome.graph is not None
    return folder / "model.onnx", outcome.graph


def _open(graph: Graph) -> PackedSession:
    return PackedSession(*graph, slots=SLOTS, max_length=LENGTH, threads=1)


def _one_form(graph: Graph) -> Graph:
    """The form for generated tokens alone."""
    model, spec = graph
    return model, spec.model_copy(update={"forms": None})


def _moved(source: PackedSession, target: PackedSession, length: int) -> None:
    """Put what one session has computed of slot 0 into another's."""
    for one, other in zip(source.cache.tensors, target.cache.tensors, strict=True):
        other.array[0, :, :length] = one.array[0, :, :length]
    target._lengths[0] = length
    target.cache.wrote(0, length)


def test_prompts_and_generated_tokens_are_computed_by_their_forms(
    by_role: Graph, int8: Graph
) -> None:
    """The slow oracle: a session of each form, the cache carried from one to the other."""
    session, prompts, generated = _open(by_role), _open(int8), _open(_one_form(by_role))
    tokens = np.random.default_rng(0).integers(0, session.vocab_size, 40)
    prompts.step([Row(0, 0, tokens[:23], 0)])
    _moved(prompts, generated, 23)
    expected = [generated.step([Row(0, 23, tokens[23:24], 1)]).logits.copy()]
    found = [session.step([Row(0, 0, tokens[:24], 1)]).logits.copy()]
    for at in range(24, 40):
        row = Row(0, at, tokens[at : at + 1], 1)
        expected.append(generated.step([row]).logits.copy())
        found.append(session.step([row]).logits.copy())
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))


def test_the_oracle_can_fail(by_role: Graph) -> None:
    """The same prompt by the other form alone gives other logits, beyond rounding."""
    tokens = np.random.default_rng(0).integers(0, 256, 24)
    both = _open(by_role).step([Row(0, 0, tokens, 1)]).logits
    one = _open(_one_form(by_role)).step([Row(0, 0, tokens, 1)]).logits
    assert np.abs(both - one).max() > 2 * ROUNDING * np.abs(one).max()


@pytest.mark.parametrize("seed", range(3))
def test_neither_chunks_nor_neighbours_matter(by_role: Graph, seed: int) -> None:
    """Any schedule gives each text the logits that it has alone and at once."""
    session, alone = _open(by_role), _open(by_role)
    rng = np.random.default_rng(seed)
    prompts = [int(rng.integers(1, 40)) for _ in range(SLOTS)]
    texts = rng.integers(0, session.vocab_size, (SLOTS, LENGTH))
    expected: list[list[np.ndarray]] = []
    for text, prompt in zip(texts, prompts, strict=True):
        alone.release(0)
        rows = [Row(0, 0, text[:prompt], 1)]
        rows += [Row(0, at, text[at : at + 1], 1) for at in range(prompt, prompt + 8)]
        expected.append([alone.step([row]).logits[0].copy() for row in rows])
    done, found = [0] * SLOTS, [[] for _ in range(SLOTS)]  # type: ignore[var-annotated]
    while any(len(given) < 9 for given in found):
        rows = []
        for slot in rng.permutation(SLOTS).tolist():
            if len(found[slot]) == 9 or rng.random() < 0.3:
                continue
            left = max(prompts[slot] - done[slot], 1)
            count = int(rng.integers(1, left + 1))
            last = done[slot] + count >= prompts[slot]
            tokens = texts[slot][done[slot] : done[slot] + count]
            rows.append(Row(slot, done[slot], tokens, int(last)))
        if not rows:
            continue
        logits = iter(session.step(rows).logits)
        for row in rows:
            done[row.slot] += len(row.tokens)
            if row.logits:
                found[row.slot].append(next(logits).copy())
    scale = np.abs(np.array(expected)).max()
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=ROUNDING * scale, rtol=0)


def test_what_both_forms_have_is_stored_once(by_role: Graph) -> None:
    """Embeddings and norms lie in the file of the form for generated tokens."""
    folder = by_role[0].parent
    graph, places = _prompts(folder)
    shared = {name for name, place in places.items() if place == "model.onnx.data"}
    assert any("embed" in name for name in shared)
    assert not any("int8" in name for name in shared)
    assert any("int8" in name for name in places)
    assert [out.name for out in graph.output if not out.name.startswith("present")] == []
    assert {one.name for one in graph.input}.isdisjoint({"logit_positions", "sampled_rows"})


def _prompts(folder: Path) -> tuple[Any, dict[str, str]]:
    """The graph for prompts, and the file that each of its large weights lies in."""
    import onnx

    graph = onnx.load(folder / "prompts.onnx", load_external_data=False).graph
    places = {
        one.name: entry.value
        for one in graph.initializer
        for entry in one.external_data
        if entry.key == "location"
    }
    return graph, places


@pytest.mark.parametrize("fields", [{}, {"algorithm": "gptq", "lm_head_bits": 4}])
def test_both_forms_have_the_same_head(
    monkeypatch: pytest.MonkeyPatch, gpt2_export: Graph, tmp_path: Path, fields: Any
) -> None:
    """Where the second gives logits too: of the same bytes, fitted or shared with embeddings."""
    import onnx

    monkeypatch.setattr(forms_sweep, "rows_to_change", lambda *_, **__: 8)
    graph = _made(gpt2_export, tmp_path, forms="adaptive", **fields)
    heads = []
    for name in ("model.onnx", "prompts.onnx"):
        loaded = onnx.load(tmp_path / name, load_external_data=False).graph
        (head,) = [one for one in loaded.node if "logits" in one.output]
        assert head.op_type == "MatMulNBits"
        places = {
            one.name: sorted((entry.key, entry.value) for entry in one.external_data)
            for one in loaded.initializer
            # Zero points are few enough here to lie inside the graph.
            if one.name in head.input and not one.name.endswith("zero_points")
        }
        attributes = {one.name: one.i for one in head.attribute}
        assert all(("location", "model.onnx.data") in place for place in places.values())
        heads.append((places, attributes))
    assert heads[0] == heads[1]
    assert heads[0][0]
    tokens = np.random.default_rng(1).integers(0, 256, 12)
    assert np.isfinite(_open(graph).step([Row(0, 0, tokens, 12)]).logits).all()


def test_an_int8_cache_is_shared_by_both_forms(by_role: Graph, tmp_path: Path) -> None:
    """The stage after it edits both graphs alike, with the same scales."""
    outcome = run_stage({"method": "kv_cache"}, *by_role, tmp_path)
    assert outcome.graph is not None
    assert outcome.graph.forms == by_role[1].forms
    before, after = (_prompts(folder)[1] for folder in (by_role[0].parent, tmp_path))
    assert before.items() <= after.items()
    tokens = np.random.default_rng(3).integers(0, 256, 30)
    exact = _open(by_role).step([Row(0, 0, tokens, 1)]).logits
    session = _open((tmp_path / "model.onnx", outcome.graph))
    assert session.cache.tensors[0].array.dtype == np.int8
    found = session.step([Row(0, 0, tokens, 1)]).logits
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


def test_a_sweep_says_from_how_many_tokens_on_the_other_form_pays(
    tiny_llama_export: Graph, tmp_path: Path
) -> None:
    """It times what is really there, and leaves nothing behind."""
    found = linears.find_linears(linears.load(tiny_llama_export[0].parent))
    stage = QuantizeWeightOnly()
    rows = rows_to_change(found, stage._rounding, 4, scratch=tmp_path, threads=1)
    assert rows is None or rows in ROWS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda rows: [1.0, 0.5] if rows >= 16 else [0.5, 1.0], 16),
        (lambda rows: [1.0, 1.0], None),  # noqa: ARG005 - a table of one row
        (lambda rows: [1.0, 0.5], 2),  # noqa: ARG005
        (lambda rows: [1.0, 0.5] if rows in {2, 4, 256} else [1.0, 0.95], 256),
    ],
)
def test_the_other_form_must_pay_from_there_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
    tiny_llama_export: Graph,
    tmp_path: Path,
    seconds: Any,
    expected: int | None,
) -> None:
    """A gain at few rows alone, which many rows lose again, does not count."""
    monkeypatch.setattr(forms_sweep, "_seconds", lambda _sessions, rows, _widths: seconds(rows))
    found = linears.find_linears(linears.load(tiny_llama_export[0].parent))
    stage = QuantizeWeightOnly()
    assert rows_to_change(found, stage._rounding, 4, scratch=tmp_path, threads=1) == expected


@pytest.mark.parametrize("most", [1, 128 << 20])
def test_a_sweep_computes_enough_products_to_leave_the_cache(
    monkeypatch: pytest.MonkeyPatch, tiny_llama_export: Graph, tmp_path: Path, most: int
) -> None:
    """As many as hold that many weights, never the head, and the same ones in both forms."""
    seen = []

    def compute(sessions: Any, rows: int, widths: list[int]) -> list[float]:
        given = {f"x{width}": np.ones((1, rows, width), np.float32) for width in widths}
        seen.append([session.run(None, given)[0] for session in sessions])
        return [1.0, 1.0]

    monkeypatch.setattr(forms_sweep, "_seconds", compute)
    monkeypatch.setattr(forms_sweep, "_WEIGHTS", most)
    found = linears.find_linears(linears.load(tiny_llama_export[0].parent))
    stage = QuantizeWeightOnly(block_size=16)
    assert rows_to_change(found, stage._rounding, 8, scratch=tmp_path, threads=1) is None
    products = [linear for linear in found if not linear.is_head][: 1 if most == 1 else None]
    exact = np.array([linear.matrix()[:, 0].sum() for linear in products])
    for given in seen[0]:
        assert given.shape == (1, ROWS[-1], len(products))
        np.testing.assert_allclose(given, np.broadcast_to(exact, given.shape), atol=0.05)


def test_auto_keeps_one_form_where_the_other_does_not_pay(
    monkeypatch: pytest.MonkeyPatch, tiny_llama_export: Graph, tmp_path: Path
) -> None:
    """And says so; where it pays it is by_role."""
    monkeypatch.setattr(forms_sweep, "rows_to_change", lambda *_, **__: None)
    outcome = run_stage({**FIELDS, "forms": "auto"}, *tiny_llama_export, tmp_path)
    assert outcome.graph is None
    assert "no faster" in outcome.notes[-1]
    assert not (tmp_path / "prompts.onnx").exists()
    monkeypatch.setattr(forms_sweep, "rows_to_change", lambda *_, **__: 8)
    outcome = run_stage({**FIELDS, "forms": "auto"}, *tiny_llama_export, tmp_path)
    assert outcome.graph is not None
    assert outcome.graph.forms == Forms(choice="by_role", prompts="prompts.onnx", rows=8)


def test_a_plain_graph_is_refused(tiny_llama_export: Graph, tmp_path: Path) -> None:
    """Only the packed form has a cache that two graphs can share."""
    model, graph = tiny_llama_export
    plain = graph.model_copy(update={"form": "plain"})
    with pytest.raises(StageError, match="packed form") as refused:
        run_stage({**FIELDS, "forms": "by_role"}, model, plain, tmp_path)
    assert refused.value.path == "forms"


def test_a_build_publishes_both_forms(
    tiny_llama_folder: Path, evaluation: Path, tmp_path: Path
) -> None:
    """An artifact of two graphs is found, verified, measured and run from where it lies."""
    child = Child(tmp_path / "store")
    chain = [{"quantize": {**FIELDS, "forms": "by_role"}}]
    plan = child.plan(str(tiny_llama_folder), {"two": chain, "one": [{"quantize": FIELDS}]})
    assert plan.variants["two"].recipe != plan.variants["one"].recipe
    events = child.build(
        str(tiny_llama_folder), plan.variants["two"], evaluation={"text": str(evaluation)}
    )
    built = events[-1]
    assert isinstance(built, Built)
    store = Store(child.store)
    stored = store.open(built.artifact, verify=True)
    manifest = stored.manifest
    assert {"prompts.onnx", "prompts.onnx.data"} <= {entry.name for entry in manifest.files}
    assert manifest.quality is not None
    assert 1e-5 < manifest.quality.kl_mean < 1
    assert manifest.graph.forms is not None
    session = PackedSession(stored.path("model.onnx"), manifest.graph, slots=1, max_length=32)
    assert np.isfinite(session.step([Row(0, 0, np.arange(1, 9), 1)]).logits).all()
    forms = manifest.graph.forms.model_copy(update={"prompts": "f" * 64})
    graph = manifest.graph.model_copy(update={"forms": forms})
    with pytest.raises(CorruptArtifactError, match="graph for prompts"):
        store.publish(manifest.model_copy(update={"graph": graph}))


def test_a_streamed_build_publishes_the_same_two_forms(
    tiny_llama_folder: Path, evaluation: Path, tmp_path: Path
) -> None:
    """Nothing is kept of it but the artifact, which is that of a build that measures its steps."""
    chain = [{"quantize": {**FIELDS, "forms": "by_role"}}]
    model, artifacts = str(tiny_llama_folder), []
    for name, measure in (("streamed", False), ("written", True)):
        child = Child(tmp_path / name)
        (planned,) = child.plan(model, {"two": chain}).variants.values()
        given = {"text": str(evaluation)} if measure else None
        built = child.build(model, planned, measure=measure, evaluation=given)[-1]
        assert isinstance(built, Built)
        artifacts.append(built.artifact)
        store = Store(child.store)
        store.open(built.artifact, verify=True)
        notes = store.manifest(built.artifact).export.notes
        assert any("miniature" in note for note in notes) != measure
        assert bool(list(store.layout.stages.iterdir())) == measure
    assert artifacts[0] == artifacts[1]


def test_what_depends_on_others_is_measured_with_both_forms_in_turns(
    by_role: Graph, int8: Graph
) -> None:
    """The figures of ``adaptive`` are of its mix: neither form's alone."""
    model, spec = int8
    assert spec.forms is not None
    mixed = spec.model_copy(update={"forms": spec.forms.model_copy(update={"rows": 8})})
    session = _open((model, mixed))
    sizes = []
    run = session.step

    def step(rows: list[Row]) -> Any:
        sizes.extend(len(row.tokens) for row in rows)
        return run(rows)

    session.step = step  # type: ignore[method-assign, assignment]
    tokens = np.random.default_rng(5).integers(0, 256, 40)
    logits = SessionScorer(session).logits(tokens, 10)
    assert logits.shape == (30, 256)
    assert sizes == [8, 7, 8, 7, 8, 2]
    for alone in (int8, _one_form(by_role)):
        other = SessionScorer(_open(alone)).logits(tokens, 10)
        assert np.abs(logits - other).max() > 1e-3 * np.abs(other).max()
