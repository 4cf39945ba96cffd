"""What variants of one model have in common lies in a file of its own, which a store keeps once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest

from artifacts.digest import sha256_file
from artifacts.external_data import external_locations
from artifacts.layout import Layout
from artifacts.manifest import GraphSpec
from artifacts.packed_session import PackedSession
from artifacts.session import Row
from artifacts.store import Store
from optimizers import linears, weight_files
from optimizers.publish import EMBEDDINGS, MODEL, PROMPTS, PROMPTS_WEIGHTS, WEIGHTS, add_files
from tests.optimizers.onnx_stage import run_stage

Graph = tuple[Path, GraphSpec]
FEW_BITS = {"method": "weight_only", "block_size": 32}
TOKENS = np.arange(1, 30)


@pytest.fixture
def every_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny tables of tests be worth a file."""
    monkeypatch.setattr(weight_files, "_OWN_FILE_BYTES", 1)


@pytest.fixture(scope="module")
def tied_export(gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Give a model whose head shares the embeddings."""
    from optimizers.export import export

    exported = export(gpt2_folder, tmp_path_factory.mktemp("gpt2"), progress=lambda *_: None)
    return exported.model, exported.graph


def _made(export: Graph, folder: Path, **fields: Any) -> Graph:
    folder.mkdir()
    outcome = run_stage({**FEW_BITS, **fields}, *export, folder)
    return folder / MODEL, outcome.graph or export[1]


def _logits(graph: Graph) -> Any:
    session = PackedSession(*graph, slots=1, max_length=64, threads=1)
    return session.step([Row(0, 0, TOKENS, 3)]).logits.copy()


@pytest.mark.usefixtures("every_table")
@pytest.mark.parametrize("name", ["tiny_llama_export", "tied_export"])
def test_variants_share_a_file_of_embeddings(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Of whatever bits their products are; also where the head has the embeddings' bytes."""
    export = request.getfixturevalue(name)
    four = _made(export, tmp_path / "four")
    eight = _made(export, tmp_path / "eight", bits=8)
    both = _made(export, tmp_path / "both", forms="by_role")
    folders = [model.parent for model, _ in (four, eight, both)]
    shared = {sha256_file(folder / EMBEDDINGS) for folder in folders}
    assert len(shared) == 1
    assert len({sha256_file(folder / WEIGHTS) for folder in folders}) == 2
    assert set(external_locations(tmp_path / "both" / PROMPTS)) == {
        EMBEDDINGS,
        WEIGHTS,
        PROMPTS_WEIGHTS,
    }


@pytest.mark.parametrize("fields", [{}, {"forms": "by_role"}, {"embedding_bits": 32}])
def test_where_weights_lie_changes_no_result(
    monkeypatch: pytest.MonkeyPatch, tied_export: Graph, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """And a table that is too small for a file lies with all others."""
    together = _made(tied_export, tmp_path / "together", **fields)
    assert not (tmp_path / "together" / EMBEDDINGS).exists()
    monkeypatch.setattr(weight_files, "_OWN_FILE_BYTES", 1)
    apart = _made(tied_export, tmp_path / "apart", **fields)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("together", "apart")]
    assert sizes[1] < sizes[0]
    np.testing.assert_array_equal(_logits(apart), _logits(together))


@pytest.mark.usefixtures("every_table")
def test_a_cache_in_int8_leaves_embeddings_where_they_are(
    tiny_llama_export: Graph, tmp_path: Path
) -> None:
    """So the variant shares them with one that has no such cache."""
    model, spec = _made(tiny_llama_export, tmp_path / "before", forms="by_role")
    (after := tmp_path / "after").mkdir()
    run_stage({"method": "kv_cache"}, model, spec, after)
    for name in (EMBEDDINGS, PROMPTS_WEIGHTS):
        assert sha256_file(after / name) == sha256_file(model.parent / name)
    assert EMBEDDINGS in external_locations(after / PROMPTS)


@pytest.mark.usefixtures("every_table")
def test_a_store_keeps_what_variants_share_once(
    tiny_llama_export: Graph, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """The graphs of both name the one file by its hash, beside their own."""
    store = Store(tmp_path / "store")
    Layout(store.root).create()
    entries = []
    for name, bits in (("four", 4), ("eight", 8)):
        model, _ = _made(tiny_llama_export, tmp_path / name, bits=bits)
        files = add_files(
            store,
            onnx_folder=model.parent,
            config_folder=tiny_llama_folder,
            text_folder=tiny_llama_folder,
        )
        entries.append({entry.name: entry.sha256 for entry in files})
    four, eight = entries
    assert four[EMBEDDINGS] == eight[EMBEDDINGS]
    assert four[WEIGHTS] != eight[WEIGHTS]
    for one in entries:
        graph = store.layout.blobs / one[MODEL]
        assert set(external_locations(graph)) == {one[EMBEDDINGS], one[WEIGHTS]}


@pytest.mark.usefixtures("every_table")
def test_a_model_is_as_it_was_after_it_was_saved(tiny_llama_export: Graph, tmp_path: Path) -> None:
    """Its weights are still read from where it came from; progress goes up, across both files."""
    model = linears.load(tiny_llama_export[0].parent)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    told: list[float] = []
    linears.save(model, tmp_path, told.append)
    for name, value in model.graph.initializers.items():
        assert value.const_value is before[name]
    assert told == sorted(told)
    assert len(set(told)) == len(told) > 3
    assert 0 == told[0] < told[-1] < 1
    saved = linears.load(tmp_path).graph.initializers
    for name, value in saved.items():
        np.testing.assert_array_equal(value.const_value.numpy(), before[name].numpy())
    tables = [
        name
        for name, value in saved.items()
        if isinstance(value.const_value, onnx_ir.ExternalTensor)
        and value.const_value.location == EMBEDDINGS
    ]
    assert tables == ["model.embed_tokens.weight"]


def test_small_weights_that_lay_outside_are_taken_in(tmp_path: Path) -> None:
    """The file that they came from is none of those that are written."""
    (source := tmp_path / "source").mkdir()
    (target := tmp_path / "target").mkdir()
    (source / "elsewhere").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    tensor = onnx_ir.ExternalTensor(
        "elsewhere",
        0,
        16,
        onnx_ir.DataType.FLOAT,
        shape=onnx_ir.Shape([4]),
        name="w",
        base_dir=source,
    )
    weight = onnx_ir.Value(
        name="w", const_value=tensor, type=onnx_ir.TensorType(tensor.dtype), shape=tensor.shape
    )
    node = onnx_ir.node("Identity", [weight])
    graph = onnx_ir.Graph(
        [], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 21}, name="g"
    )
    weight_files.save_graph(onnx_ir.Model(graph, ir_version=10), target, [])
    assert list(external_locations(target / MODEL)) == []
    (saved,) = linears.load(target).graph.initializers.values()
    np.testing.assert_array_equal(saved.const_value.numpy(), np.arange(4))
