"""GPTQ and static int8 as stages, on whole graphs with pruned weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.manifest import GraphSpec
from artifacts.measure import open_scorer
from optimizers import linears
from optimizers.errors import TextUseError
from optimizers.joined_products import JOIN
from optimizers.recipe import recipe_digest
from optimizers.spec import parse_chain
from optimizers.stage import Stage, Work
from optimizers.zeros import check_zeros, count_zeros

pytestmark = pytest.mark.usefixtures("one_torch_thread")
Export = tuple[Path, GraphSpec]
METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "weight_only", "algorithm": "gptq"},
    "gptq8": {"method": "weight_only", "algorithm": "gptq", "bits": 8, "symmetric": True},
    "static": {"method": "static"},
}


def _stage(**fields: Any) -> Stage:
    chain = parse_chain("chain", [{"quantize": fields}])
    assert not chain.errors, chain.errors
    (stage,) = chain.stages
    return stage


def _windows(count: int = 16, length: int = 48, below: int = 256) -> list[np.ndarray]:
    return list(np.random.default_rng(7).integers(0, below, (count, length)))


def _apply(stage: Stage, export: Export, target: Path, windows: Any = None) -> None:
    target.mkdir()
    given = _windows() if windows is None else windows
    original: Any = None  # such a stage works on the graph alone
    work = Work(export[0].parent, export[1], original, _nobody, lambda _: given, 1)
    stage.apply(work, target, lambda *_: None)


def _nobody(*_: object) -> Any:
    pytest.fail("quantizing needs no other model")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pruned(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Give a graph, half of whose weights inside the blocks are zero."""
    from benchmarks import zoo
    from optimizers.export import export

    name: str = request.param
    folder = zoo.write_model(tmp_path_factory.mktemp("models") / name, name)
    (prune,) = parse_chain("chain", [{"prune": {"amount": 0.5}}]).stages
    target, original = tmp_path_factory.mktemp("pruned"), None
    work = Work(folder, None, original, _nobody, _nobody)  # type: ignore[arg-type]
    prune.apply(work, target, lambda *_: None)
    exported = export(target, tmp_path_factory.mktemp("export"), progress=lambda *_: None)
    return exported.model, exported.graph


@pytest.mark.parametrize("name", METHODS)
def test_zeros_stay_and_every_product_is_quantized(
    pruned: Export, tmp_path: Path, name: str
) -> None:
    """All products become those of the method, and none of the zeros is lost."""
    zeros = count_zeros(linears.load(pruned[0].parent))
    assert zeros > 0
    _apply(_stage(**METHODS[name]), pruned, tmp_path / "out")
    check_zeros(tmp_path / "out", zeros)
    nodes = [*linears.load(tmp_path / "out").graph]
    kinds = [node.op_type for node in nodes]
    product = "MatMulIntegerToFloat" if name == "static" else "MatMulNBits"
    before = linears.find_linears(linears.load(pruned[0].parent))
    names = [name for node in nodes if node.op_type == product for name in node.name.split(JOIN)]
    assert sorted(names) == sorted(linear.node.name for linear in before)
    assert "MatMul" not in kinds
    assert "Gemm" not in kinds


@pytest.mark.parametrize("name", METHODS)
def test_the_result_reads_as_the_graph_does(pruned: Export, tmp_path: Path, name: str) -> None:
    """Logits stay within a fraction of their scale, and a second run gives the same file."""
    for copy in ("one", "two"):
        _apply(_stage(**METHODS[name]), pruned, tmp_path / copy)
    document = _windows(1, 80)[0]
    exact = open_scorer(pruned[0], pruned[1], threads=1).logits(document, 0).copy()
    found = open_scorer(tmp_path / "one" / "model.onnx", pruned[1], threads=1).logits(document, 0)
    allowed = {"gptq": 0.3, "gptq8": 0.05, "static": 0.1}[name]
    assert np.abs(found - exact).mean() < allowed * np.abs(exact).mean()
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_static_leaves_the_head_where_asked(pruned: Export, tmp_path: Path) -> None:
    """The head stays in float32 and the table as it is."""
    _apply(_stage(method="static", lm_head=False, embedding_bits=32), pruned, tmp_path / "out")
    model = linears.load(tmp_path / "out")
    (left,) = linears.find_linears(model)
    assert left.is_head
    assert linears.find_embeddings(model)


def test_a_text_beyond_the_vocabulary_is_refused(pruned: Export, tmp_path: Path) -> None:
    """A smaller model than the original cannot read all of its tokens."""
    windows = [np.full(48, 300) for _ in range(16)]
    with pytest.raises(TextUseError, match="within the vocabulary"):
        _apply(_stage(method="static"), pruned, tmp_path / "out", windows)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"method": "static"}, True),
        ({"method": "weight_only", "algorithm": "gptq"}, True),
        ({"method": "weight_only", "algorithm": "hqq"}, False),
        ({"method": "weight_only"}, False),
    ],
)
def test_the_recipe_tells_the_text_where_it_matters(
    *, fields: dict[str, Any], expected: bool
) -> None:
    """Another calibration text is another artifact, for the methods that read it alone."""
    stage = _stage(**fields)
    assert stage.calibrates is expected
    one, other = (recipe_digest("model", [stage], text) for text in ("one", "other"))
    assert (one != other) is expected


def test_a_percentile_without_its_range_is_refused() -> None:
    """It would change nothing."""
    chain = parse_chain("chain", [{"quantize": {"method": "static", "percentile": 99.0}}])
    (error,) = chain.errors
    assert error.path == "chain[0].quantize.percentile"
    assert "range" in error.remedy
