"""A text's way through a graph in sections, against one run of the whole graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from numpy.typing import NDArray

from artifacts.manifest import GraphSpec, KvLayer
from artifacts.runtime import Threads, open_runtime
from optimizers import linears
from optimizers.errors import StageError
from optimizers.graph_flow import Reached, visit_products
from optimizers.linears import find_linears, new_weight
from optimizers.text_inputs import caches, inputs_of_runs

Export = tuple[Path, GraphSpec]


def _documents(count: int, length: int) -> list[NDArray[np.int64]]:
    return list(np.random.default_rng(7).integers(0, 256, (count, length)))


@pytest.fixture(scope="module")
def gpt2_export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Give a random GPT-2, whose products have biases, as a verified graph."""
    from benchmarks import zoo
    from optimizers.export import export

    folder = zoo.write_model(tmp_path_factory.mktemp("models") / "tiny-gpt2", "gpt2")
    exported = export(folder, tmp_path_factory.mktemp("export"), progress=lambda *_: None)
    return exported.model, exported.graph


@pytest.fixture(scope="module")
def plain_export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Give a graph of the plain form: products around a running sum that the cache holds."""
    model = onnx_ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        decoder (int64[1, n] input_ids, int64[1, t] attention_mask,
                 float[1, 1, p, 64] past_key,
                 float[1, 1, p, 64] past_value)
            => (float[1, n, 256] logits, float[1, 1, t, 64] present_key,
                float[1, 1, t, 64] present_value)
        {
            hidden = Gather(table, input_ids)
            inside = MatMul(hidden, first)
            axis = Constant<value_ints = [1]>()
            by_head = Unsqueeze(inside, axis)
            present_key = Concat<axis = 2>(past_key, by_head)
            present_value = Identity(present_key)
            along = Constant<value_int = 2>()
            summed = CumSum(present_key, along)
            flat = Squeeze(summed, axis)
            both = Add(flat, hidden)
            logits = MatMul(both, second)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("table", (256, 64)), ("first", (64, 64)), ("second", (64, 256))):
        weight = new_weight(model, name, 0.1 * rng.standard_normal(shape).astype(np.float32))
        for node in model.graph:
            for place, value in enumerate(node.inputs):
                if value is not None and value.name == name:
                    node.replace_input_with(place, weight)
    folder = tmp_path_factory.mktemp("plain")
    linears.save(model, folder)
    layer = KvLayer(
        past_key="past_key",
        past_value="past_value",
        present_key="present_key",
        present_value="present_value",
        heads=1,
        key_dim=64,
        value_dim=64,
    )
    inputs = ("input_ids", "attention_mask", "past_key", "past_value")
    graph = GraphSpec(form="plain", vocab_size=256, max_length=256, layers=(layer,), inputs=inputs)
    return folder / "model.onnx", graph


@pytest.fixture(params=["llama", "gpt2", "plain"])
def export(
    request: Any, tiny_llama_export: Export, gpt2_export: Export, plain_export: Export
) -> Export:
    exports = {"llama": tiny_llama_export, "gpt2": gpt2_export, "plain": plain_export}
    return exports[request.param]


def _at_once(path: Path, graph: GraphSpec, documents: Any, folder: Path) -> dict[str, Any]:
    """Every product's input, by one run of the whole graph per document."""
    model = linears.load(path.parent)
    wanted = dict.fromkeys(one.node.inputs[0] for one in find_linears(model))
    model.graph.outputs.extend(wanted)
    linears.save(model, folder)
    session = open_runtime(folder / "model.onnx", Threads(count=1))
    names = [value.name for value in wanted]
    found = []
    for document in documents:
        (inputs,) = inputs_of_runs(graph, [document])
        feeds = {**inputs, **dict(caches(graph, inputs))}
        given = {value.name: feeds[value.name] for value in session.get_inputs()}
        found.append(session.run(names, given))
    return {
        name: np.concatenate([one[index].reshape(-1, one[index].shape[-1]) for one in found])
        for index, name in enumerate(names)
    }


def _visited(path: Path, graph: GraphSpec, documents: Any, folder: Path, visit: Any) -> Any:
    model = linears.load(path.parent)
    visit_products(model, graph, documents, visit, scratch=folder, threads=1)
    return model


def test_every_product_is_reached_with_what_flows_into_it(export: Export, tmp_path: Path) -> None:
    """Computed in sections, several documents side by side, inputs are those of a whole run."""
    path, graph = export
    documents = _documents(12, 200)
    expected = _at_once(path, graph, documents, tmp_path)
    seen: dict[str, Any] = {}
    products: list[str] = []

    def visit(reached: Reached) -> None:
        assert len(reached.inputs) > 1
        seen[reached.products[0].node.inputs[0].name] = np.concatenate(reached.inputs)
        products.extend(one.weight.name for one in reached.products)

    _visited(path, graph, documents, tmp_path, visit)
    assert list(seen) == list(expected)
    assert products == [one.weight.name for one in find_linears(linears.load(path.parent))]
    for name, inputs in seen.items():
        np.testing.assert_allclose(inputs, expected[name], rtol=1e-4, atol=1e-4)


def test_the_text_is_read_as_the_torch_form_reads_it(
    tiny_llama_export: Export, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """What reaches the head, times the head, are the logits of every position."""
    import torch

    from optimizers.torch_models import load_module

    documents = _documents(3, 40)
    logits: list[Any] = []

    def visit(reached: Reached) -> None:
        (head, *_) = reached.products
        if head.is_head:
            logits.append(np.concatenate(reached.inputs) @ head.matrix())

    _visited(*tiny_llama_export, documents, tmp_path, visit)
    with torch.no_grad():
        expected = load_module(tiny_llama_folder)(input_ids=torch.from_numpy(np.stack(documents)))
    np.testing.assert_allclose(
        logits[0], expected.logits.reshape(-1, 256).numpy(), rtol=1e-3, atol=1e-3
    )


def test_later_products_see_what_was_changed(export: Export, tmp_path: Path) -> None:
    """With the first product's weight zeroed when reached, the rest is as if it always were."""
    path, graph = export
    documents = _documents(2, 30)
    seen: dict[str, Any] = {}
    first: list[str] = []

    def visit(reached: Reached) -> None:
        if not first:
            weight = reached.products[0].weight
            first.append(weight.name)
            zeros = np.zeros(tuple(weight.const_value.shape), np.float32)
            weight.const_value = onnx_ir.tensor(zeros, name=weight.name)
        seen[reached.products[0].node.inputs[0].name] = np.concatenate(reached.inputs)

    changed = _visited(path, graph, documents, tmp_path, visit)
    untouched = _at_once(path, graph, documents, tmp_path)
    (tmp_path / "changed").mkdir()
    linears.save(changed, tmp_path / "changed")
    expected = _at_once(tmp_path / "changed" / "model.onnx", graph, documents, tmp_path)
    last = list(seen)[-1]
    np.testing.assert_allclose(seen[last], expected[last], rtol=1e-4, atol=1e-4)
    assert np.abs(seen[last] - untouched[last]).max() > 1e-2


def test_a_product_whose_result_only_leaves_the_graph_is_passed_by(tmp_path: Path) -> None:
    """Then nothing new is to be computed for the next one, whose input is there already."""
    model = onnx_ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        decoder (int64[1, n] input_ids) => (float[1, n, 4] side, float[1, n, 4] logits)
        <float[3, 2] table = {1, 2, 3, 4, 5, 6}, float[2, 4] a = {1, 2, 3, 4, 5, 6, 7, 8},
         float[2, 4] b = {8, 7, 6, 5, 4, 3, 2, 1}>
        {
            hidden = Gather(table, input_ids)
            doubled = Add(hidden, hidden)
            negative = Neg(hidden)
            side = MatMul(doubled, a)
            logits = MatMul(negative, b)
        }"""
    )
    graph = GraphSpec(form="plain", vocab_size=3, max_length=8, layers=(), inputs=("input_ids",))
    seen: list[NDArray[np.float32]] = []
    visit_products(
        model,
        graph,
        [np.array([2, 0])],
        lambda reached: seen.extend(reached.inputs),
        scratch=tmp_path,
        threads=1,
    )
    np.testing.assert_array_equal(seen, [[[10, 12], [2, 4]], [[-5, -6], [-1, -2]]])


def test_a_graph_with_branches_is_refused(plain_export: Export, tmp_path: Path) -> None:
    """What lies in a branch would cross unseen."""
    path, graph = plain_export
    model = linears.load(path.parent)
    (node,) = [node for node in model.graph if node.op_type == "Add"]
    inside = onnx_ir.node("Identity", [node.inputs[0]])
    branch = onnx_ir.Graph([], inside.outputs, nodes=[inside], name="branch")
    node.attributes["body"] = onnx_ir.AttrGraph("body", branch)
    with pytest.raises(StageError, match="branches"):
        visit_products(model, graph, _documents(1, 20), lambda _: None, scratch=tmp_path, threads=1)
