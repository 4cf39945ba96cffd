"""The demo model's float32 graph, and what is lost when a stage of that form is applied to it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import demo
from artifacts import texts
from artifacts.layout import Layout
from artifacts.manifest import GraphSpec, Quality
from artifacts.measure import measure, open_scorer
from artifacts.reference import choose_windows, load_reference, make_reference
from optimizers.calibration import WINDOW
from optimizers.sources import DEMO, Source, fetch
from optimizers.spec import parse_chain
from optimizers.stage import Work
from optimizers.tokenizer_files import load_tokenizer

TOKENS = 2048  # that are measured on
VOCABULARY = 4096
Windows = tuple[NDArray[np.int64], ...]


@pytest.fixture(scope="session")
def demo_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Give the demo model."""
    layout = Layout(tmp_path_factory.mktemp("no-store"))
    return fetch(DEMO, None, layout=layout, offline=True, report=lambda *_: None)


@pytest.fixture(scope="session")
def demo_graph(
    demo_source: Source, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, GraphSpec]:
    """Give its verified graph: the folder, and how it is run."""
    from optimizers.export import export

    folder = tmp_path_factory.mktemp("demo-graph")
    exported = export(demo_source.folder, folder, progress=lambda *_: None)
    return folder, exported.graph


@pytest.fixture(scope="session")
def demo_windows(demo_source: Source) -> Windows:
    """Give 16 passages of 256 tokens of its calibration text."""
    return _windows(demo_source, "calibration.jsonl", 16 * WINDOW)


@pytest.fixture(scope="session")
def loss(
    demo_source: Source,
    demo_graph: tuple[Path, GraphSpec],
    demo_windows: Windows,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Quality]:
    """Give what applies a stage to the graph and measures the result against the graph itself.

    It takes the stage's name and fields, ``windows`` to calibrate on others than the usual, and
    ``origin`` to apply it to the graph in another folder.
    """
    folder, graph = demo_graph
    scratch = tmp_path_factory.mktemp("losses")
    documents = _windows(demo_source, "heldout.jsonl", TOKENS)
    scorer = open_scorer(folder / "model.onnx", graph, threads=2)
    make_reference(scratch, documents, scorer, vocabulary=VOCABULARY)
    reference = load_reference(scratch)
    found: dict[str, Quality] = {}

    def lose(
        name: str,
        *,
        windows: Sequence[NDArray[np.int64]] | None = None,
        origin: Path = folder,
        **fields: Any,
    ) -> Quality:
        key = f"{origin} {name} {sorted(fields.items())}"
        if key not in found or windows is not None:
            (stage,) = parse_chain("chain", [{name: fields}]).stages
            target = Path(tempfile.mkdtemp(dir=scratch))
            given = demo_windows if windows is None else windows
            work = Work(origin, graph, demo_source, _nobody, lambda _: given, 2)
            stage.apply(work, target, lambda *_: None)
            variant = open_scorer(target / "model.onnx", graph, threads=2)
            quality = measure(reference, variant, is_user_text=True)
            if windows is not None:
                return quality
            found[key] = quality
        return found[key]

    return lose


def _windows(source: Source, name: str, tokens: int) -> Windows:
    tokenizer = load_tokenizer(source.folder)
    documents = [tokenizer.encode(text).ids for text in texts.read(str(demo.path().parent / name))]
    whole = [document for document in documents if len(document) >= WINDOW]
    return choose_windows(whole, window=WINDOW, tokens=tokens, vocabulary=VOCABULARY)


def _nobody(*_: object) -> Any:
    pytest.fail("quantizing needs no other model")
