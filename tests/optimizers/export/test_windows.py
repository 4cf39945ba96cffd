"""Sliding windows too long for any text are verified all the same, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import pytest

from artifacts.manifest import GraphSpec
from benchmarks import zoo
from optimizers.export import export, mobius_exporter
from optimizers.export.decoder import Decoder, read_decoder
from optimizers.export.graph_file import MODEL_FILE, save
from optimizers.export.packed import attention_nodes
from optimizers.export.reference import make_reference
from optimizers.export.verify import verify
from optimizers.export.windows import read_windows, shortened

WINDOW = 4096
WINDOWS = (WINDOW, None)  # of Gemma 2, whose layers take turns


@dataclass(frozen=True, slots=True)
class Case:
    """A model with a long window in every other layer, and its graph."""

    decoder: Decoder
    model: Path
    graph: GraphSpec


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Give a small Gemma 2 with the window of the real one."""
    root = tmp_path_factory.mktemp("long-window")
    model = zoo.write_model(
        root / "model", "gemma2", sliding_window=WINDOW, max_position_embeddings=2 * WINDOW
    )
    exported = export(model, root / "graph", progress=lambda *_: None, threads=1)
    assert exported.record.exporter == "mobius"
    assert exported.record.tried == ()
    return Case(read_decoder(model), exported.model, exported.graph)


def test_the_graph_keeps_the_models_own_window(case: Case) -> None:
    """What is served has the real window; the shorter copy is gone."""
    assert read_windows(case.model) == WINDOWS
    assert {path.name for path in case.model.parent.iterdir()} == {"model.onnx", "model.onnx.data"}


def test_a_shortened_copy_differs_in_the_windows_alone(case: Case) -> None:
    """Layers without a window get none, and weights are not written again."""
    with shortened(case.model, 16) as copy:
        assert read_windows(copy) == (16, None)
        assert abs(copy.stat().st_size - case.model.stat().st_size) < 100
        assert {path.name for path in case.model.parent.iterdir()} == {
            "model.onnx", "model.onnx.data", copy.name,
        }  # fmt: skip
    assert not copy.exists()


@pytest.mark.parametrize(
    "windows",
    [(None, None), (WINDOW, WINDOW), (None, WINDOW), (WINDOW - 1, None), (WINDOW, 2 * WINDOW)],
)
def test_a_window_on_the_wrong_layer_is_refused(
    case: Case, windows: tuple[int | None, ...], tmp_path: Path
) -> None:
    """Lost, added, moved, of another length: no text of 56 tokens would show it."""
    model = ir.load(case.model)
    for node, window in zip(attention_nodes(model), windows, strict=True):
        node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", window or -1)
    reference = make_reference(case.decoder, threads=1)
    assert verify(case.model, case.graph, reference, threads=1).mismatch is None
    verdict = verify(save(model, tmp_path), case.graph, reference, threads=1)
    assert "windows of its layers" in str(verdict.mismatch)


@pytest.mark.parametrize("windows", [(WINDOW, WINDOW), (None, WINDOW)])
def test_a_window_misread_from_the_config_is_refused(
    case: Case, windows: tuple[int | None, ...], tmp_path: Path
) -> None:
    """Where the graph is what the config was taken for, the texts contradict both."""
    misread = replace(case.decoder, windows=windows)
    graph = mobius_exporter.export_packed(misread, tmp_path)
    verdict = verify(tmp_path / MODEL_FILE, graph, make_reference(misread, threads=1), threads=1)
    assert "differ" in str(verdict.mismatch)


def test_a_plain_graph_with_a_long_window_is_refused(case: Case) -> None:
    """Its window lies somewhere in its mask, where nothing could cut it."""
    graph = case.graph.model_copy(update={"form": "plain"})
    reference = make_reference(case.decoder, threads=1)
    verdict = verify(case.model, graph, reference, threads=1)
    assert "cannot be verified past a sliding window of 4096" in str(verdict.mismatch)
