"""What is quantized while it is read is what is quantized after it was written, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts.digest import sha256_file
from artifacts.manifest import Manifest
from artifacts.protocol import BuildEvent, BuildFailed, Built, StageBegun
from artifacts.store import Store
from benchmarks import zoo
from optimizers import forms_sweep
from optimizers.block_quantization import Rounding
from optimizers.export import export, mobius_exporter
from optimizers.export.decoder import read_decoder
from optimizers.export.mapped_weights import map_weights
from optimizers.export.miniature import Miniature, MiniatureError, write_miniature
from optimizers.export.unwritten import UnwrittenError, export_unwritten
from optimizers.lazy_blocks import LazyBlocks
from optimizers.linears import find_linears
from optimizers.publish import MODEL, PROMPTS_WEIGHTS, WEIGHTS
from optimizers.spec import parse_chain
from optimizers.stage import Stage, Work
from optimizers.streaming import can_stream

if TYPE_CHECKING:
    from tests.optimizers.conftest import BuiltVariants, Child

LAYERS = 4
INT4: dict[str, Any] = {"quantize": {"method": "weight_only"}}


TWO_FORMS = {"forms": "by_role"}
DYNAMIC = {"method": "dynamic"}


def _stage(**fields: Any) -> Stage:
    (stage,) = parse_chain("chain", [{"quantize": {"method": "weight_only", **fields}}]).stages
    return stage


def _work(folder: Path, graph: Any) -> Work:
    def nobody(*_: object) -> Any:
        pytest.fail("the stage needs nothing else")

    return Work(folder, graph, None, nobody, nobody, 2)  # type: ignore[arg-type] - not looked at


def _written(model: Path, stage: Stage, folder: Path) -> Path:
    """The whole way: a float32 graph on disk, then the stage."""
    (target := folder / "written").mkdir()
    exported = export(model, folder / "export", progress=lambda *_: None, threads=2)
    assert (exported.record.exporter, exported.record.tried) == ("mobius", ())
    stage.apply(_work(folder / "export", exported.graph), target, lambda *_: None)
    return target


def _streamed(model: Path, stage: Stage, folder: Path) -> Path:
    (target := folder / "streamed").mkdir()
    unwritten = export_unwritten(model, folder, progress=lambda *_: None, threads=2)
    stage.stream(unwritten.model, _work(target, unwritten.graph), target, lambda *_: None)
    return target


def _digests(folder: Path) -> dict[str, str]:
    found = {path.name: sha256_file(path) for path in folder.iterdir()}
    assert {MODEL, WEIGHTS} <= set(found)
    return found


def _store_as(folder: Path, dtype: torch.dtype, shard: str = "5GB") -> None:
    """Write a folder's weights anew, in another type and in parts."""
    from optimizers.torch_models import load_module

    module = load_module(folder, dtype=str(dtype).removeprefix("torch."))
    (folder / "model.safetensors").unlink()
    module.save_pretrained(folder, max_shard_size=shard)


@pytest.mark.parametrize(
    ("name", "changes", "fields"),
    [
        ("llama", {"num_hidden_layers": LAYERS}, {}),
        ("qwen2", {"num_hidden_layers": LAYERS, "tie_word_embeddings": True}, {}),
        ("qwen2", {"num_hidden_layers": LAYERS}, {"bits": 8, "embedding_bits": 32}),
        ("phi3", {"num_hidden_layers": LAYERS}, {"algorithm": "hqq", "lm_head_bits": 32}),
        ("gpt2", {"n_layer": LAYERS}, {"symmetric": True}),
        ("gemma3_tied", {"num_hidden_layers": 8}, {"algorithm": "k_quant", "block_size": 16}),
        ("smollm3", {"num_hidden_layers": 8}, {}),
        ("llama", {"num_hidden_layers": LAYERS}, TWO_FORMS),
        ("qwen2", {"tie_word_embeddings": True}, {**TWO_FORMS, "bits": 8}),
        ("qwen2", {"tie_word_embeddings": True}, {"forms": "adaptive"}),
        ("gpt2", {"n_layer": LAYERS}, {**TWO_FORMS, "embedding_bits": 32}),
        ("phi3", {"num_hidden_layers": LAYERS}, {"forms": "auto", "lm_head_bits": 32}),
        ("gemma3_tied", {"num_hidden_layers": 8}, {"forms": "adaptive", "embedding_bits": 32}),
        ("llama", {"num_hidden_layers": LAYERS}, DYNAMIC),
        ("gpt2", {"n_layer": LAYERS}, {**DYNAMIC, "lm_head": False}),
        ("qwen2", {"tie_word_embeddings": True}, {**DYNAMIC, "embedding_bits": 32}),
    ],
)
def test_streamed_weights_are_those_of_a_written_export(
    name: str,
    changes: dict[str, Any],
    fields: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of fused and of transposed layers, of layers of several kinds, and of a tied head."""
    monkeypatch.setattr(forms_sweep, "rows_to_change", lambda *_, **__: 8)  # a matter of time
    model = zoo.write_model(tmp_path / "model", name, **changes)
    stage = _stage(**fields)
    digests = _digests(_streamed(model, stage, tmp_path))
    assert (PROMPTS_WEIGHTS in digests) == ("forms" in fields)
    assert digests == _digests(_written(model, stage, tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_in_several_files_stream_too(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """As almost every model is published."""
    model = zoo.write_model(tmp_path / "model", "qwen2", num_hidden_layers=LAYERS)
    _store_as(model, dtype, shard="100KB")
    assert {one.dtype for one in map_weights(model).tensors.values()} == {dtype}
    stage = _stage(**TWO_FORMS)
    digests = _digests(_streamed(model, stage, tmp_path))
    assert digests == _digests(_written(model, stage, tmp_path))


@pytest.mark.parametrize("fields", [{}, {"forms": "adaptive"}, DYNAMIC])
def test_a_matrix_is_never_held_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """Not even the largest, which has a row for each token of the vocabulary."""
    from optimizers.export import source_tensor

    rows = 40_000
    model = zoo.write_model(
        tmp_path / "model", "llama", vocab_size=rows, tie_word_embeddings=True, hidden_size=64
    )
    read: list[int] = []
    real = source_tensor._read

    def counting(tensor: Any, forget: Callable[[], None]) -> Any:
        read.append(tensor.numel())
        return real(tensor, forget)

    monkeypatch.setattr(source_tensor, "_read", counting)
    unwritten = export_unwritten(model, tmp_path, progress=lambda *_: None)
    read.clear()
    (target := tmp_path / "t").mkdir()
    stage = _stage(**fields)
    stage.stream(unwritten.model, _work(target, unwritten.graph), target, lambda *_: None)
    assert sum(read) >= rows * 64
    assert max(read) < rows * 64 / 4


def test_what_two_forms_share_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is the same is seen without making it again, to be compared."""
    made: list[int] = []
    real = LazyBlocks._make_parts

    def counting(blocks: LazyBlocks) -> Any:
        made.append(blocks.form.rows)
        return real(blocks)

    monkeypatch.setattr(LazyBlocks, "_make_parts", counting)
    model = zoo.write_model(tmp_path / "model", "qwen2", tie_word_embeddings=True, vocab_size=5_000)
    folder = _streamed(model, _stage(**TWO_FORMS), tmp_path)
    assert made.count(5_000) == 1
    assert (folder / PROMPTS_WEIGHTS).is_file()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_sweep_reads_weights_where_they_lie(name: str, tmp_path: Path) -> None:
    """It times a matrix and its transpose, neither of which a streamed export has written."""
    unwritten = export_unwritten(
        zoo.write_model(tmp_path / "model", name), tmp_path, progress=lambda *_: None
    )
    found = find_linears(unwritten.model)
    rounding = Rounding(block_size=32, is_symmetric=False, algorithm="rtn")
    (scratch := tmp_path / "sweep").mkdir()
    rows = forms_sweep.rows_to_change(found, rounding, 4, scratch=scratch, threads=1)
    assert rows is None or rows in forms_sweep.ROWS


def test_pages_that_were_read_are_given_back(tmp_path: Path) -> None:
    """Or the whole file would count as this process's memory in the end."""
    save_file({"a": torch.ones(1 << 24, dtype=torch.float16)}, tmp_path / "model.safetensors")
    weights = map_weights(tmp_path)
    before = _resident_file_bytes()
    assert float(weights.tensors["a"].float().sum()) == 1 << 24
    assert _resident_file_bytes() - before > 24 << 20
    weights.forget()
    assert _resident_file_bytes() - before < 4 << 20
    assert float(weights.tensors["a"][7]) == 1


def test_what_was_changed_in_place_is_not_given_back(tmp_path: Path) -> None:
    """It would be read again as it was before."""
    save_file({"a": torch.ones(1 << 16)}, tmp_path / "model.safetensors")
    weights = map_weights(tmp_path)
    weights.tensors["a"] += 1
    weights.forget()
    assert float(weights.tensors["a"][0]) == 2
    assert float(load_file(tmp_path / "model.safetensors")["a"][0]) == 1


def _resident_file_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) << 10


# The miniature.


def _miniature(folder: Path, tmp_path: Path) -> Miniature:
    return write_miniature(read_decoder(folder), tmp_path / "miniature")


def test_a_miniature_has_the_weights_of_the_first_layers_and_tokens(tmp_path: Path) -> None:
    """And transformers takes it for a model like any other."""
    from optimizers.torch_models import load_module

    folder = zoo.write_model(
        tmp_path / "model", "llama", num_hidden_layers=LAYERS, vocab_size=5_000, eos_token_id=4_999
    )
    miniature = _miniature(folder, tmp_path)
    assert (miniature.layers, miniature.tokens) == (2, 4_096)
    whole, small = load_module(folder).state_dict(), load_module(miniature.folder).state_dict()
    for name, tensor in small.items():
        assert torch.equal(tensor, whole[name][: len(tensor)])
    assert small["model.embed_tokens.weight"].shape[0] == 4_096
    assert not any(".2." in name for name in small)


def test_each_kind_of_layer_is_in_a_miniature(tmp_path: Path) -> None:
    """Of five with a window and one without, the sixth layer is the first of its kind."""
    folder = zoo.write_model(tmp_path / "model", "gemma3_tied", num_hidden_layers=8)
    assert read_decoder(folder).windows.index(None) == 5
    assert _miniature(folder, tmp_path).layers == 6


def test_a_layer_with_weights_of_its_own_is_in_a_miniature(tmp_path: Path) -> None:
    """Whatever the config says, or does not say."""
    folder = zoo.write_model(tmp_path / "model", "llama", num_hidden_layers=LAYERS)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.self_attn.q_proj.bias"] = torch.ones(64)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert _miniature(folder, tmp_path).layers == 3


def test_a_model_whose_layers_cannot_be_told_apart_has_no_miniature(tmp_path: Path) -> None:
    """It is exported and verified as a whole."""
    folder = zoo.write_model(tmp_path / "model", "llama")
    weights = load_file(folder / "model.safetensors")
    named = {name.replace("layers.", "layers_"): tensor for name, tensor in weights.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MiniatureError, match="do not tell which layer"):
        _miniature(folder, tmp_path)


def test_an_export_that_does_wrong_by_the_miniature_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is one weight of the second layer, off by a hundredth: it is compared as always."""
    folder = zoo.write_model(tmp_path / "model", "llama", num_hidden_layers=LAYERS)
    real = mobius_exporter._read_in_parts

    def broken(model: Any, weights: dict[str, Any], *more: Any) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        wrong = weights[name].clone()
        wrong[3, 5] += 0.01
        real(model, {**weights, name: wrong}, *more)

    export_unwritten(folder, tmp_path / "right", progress=lambda *_: None)
    monkeypatch.setattr(mobius_exporter, "_read_in_parts", broken)
    with pytest.raises(UnwrittenError, match=r"in a miniature, .*logits differ by"):
        export_unwritten(folder, tmp_path / "wrong", progress=lambda *_: None)


def test_a_miniature_that_is_not_the_model_s_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that the graph looks up wrongly shows, though its rows are cut."""
    folder = zoo.write_model(tmp_path / "model", "llama", vocab_size=5_000)
    monkeypatch.setattr(mobius_exporter, "rotary_tables", _turned_tables)
    with pytest.raises(UnwrittenError, match="logits differ by"):
        export_unwritten(folder, tmp_path / "wrong", progress=lambda *_: None)


def _turned_tables(decoder: Any, module: Any) -> Any:
    from optimizers.export.decoder import RotaryTable, rotary_tables

    tables = rotary_tables(decoder, module)
    assert tables is not None
    return tuple(RotaryTable(table.cos, -table.sin) for table in tables)


# Builds.


def _manifest(child: Child, events: list[BuildEvent]) -> Manifest:
    built = events[-1]
    assert isinstance(built, Built), built
    return Store(child.store).manifest(built.artifact)


def test_the_plan_tells_what_streams(child: Child, tiny_llama_folder: Path) -> None:
    """Whoever looks at activations, or at more than one stage, does not."""
    quantize = INT4["quantize"]
    chains: dict[str, list[dict[str, Any]]] = {
        "int4": [INT4],
        "int8": [{"quantize": {**quantize, "bits": 8, "algorithm": "hqq"}}],
        "original": [],
        "gptq": [{"quantize": {**quantize, "algorithm": "gptq"}}],
        "mixed": [{"quantize": {**quantize, "bits": "mixed", "mean_bits": 5}}],
        "measured": [{"quantize": {**quantize, "accuracy_level": "auto"}}],
        "two_forms": [{"quantize": {**quantize, "forms": "by_role"}}],
        "adaptive": [{"quantize": {**quantize, "forms": "adaptive"}}],
        "two_forms_gptq": [{"quantize": {**quantize, **TWO_FORMS, "algorithm": "gptq"}}],
        "dynamic": [{"quantize": DYNAMIC}],
        "static": [{"quantize": {"method": "static"}}],
        "pruned": [{"prune": {"amount": 0.5}}, INT4],
    }
    plan = child.plan(str(tiny_llama_folder), chains)
    assert not plan.errors
    streaming = {name for name, one in plan.variants.items() if one.streams}
    assert streaming == {"int4", "int8", "two_forms", "adaptive", "dynamic"}
    for name, chain in chains.items():
        stages = parse_chain("chain", chain).stages
        assert can_stream(stages) == plan.variants[name].streams


def test_a_build_that_does_not_measure_streams_to_the_same_artifact(
    built: BuiltVariants, child: Child
) -> None:
    """Nothing is kept but the artifact, and its manifest says how it was verified."""
    planned = built.plan.variants["int4"]
    events = child.build(built.model, planned, measure=False)
    begun = [event.stage for event in events if isinstance(event, StageBegun)]
    assert begun == ["fetch", "export", "quantize", "publish"]
    manifest = _manifest(child, events)
    assert manifest.digest == built.manifest("int4").digest
    assert manifest.recipe == built.manifest("int4").recipe
    assert [record.stage for record in manifest.lineage] == ["export", "quantize"]
    assert manifest.quality is None
    assert manifest.export.tokens_compared > 0
    assert "verified on a miniature with 2 of 2 layers" in manifest.export.notes[0]
    assert "never written" in manifest.lineage[0].notes[0]
    store = Store(child.store)
    assert not list(store.layout.stages.iterdir())
    assert not list(store.layout.tmp.iterdir())
    store.open(manifest.digest, verify=True)


def test_what_is_to_be_measured_does_not_stream(built: BuiltVariants) -> None:
    """Its steps are kept and have figures each, as ever."""
    manifest = built.manifest("int4")
    assert all(record.quality is not None for record in manifest.lineage)
    assert not any("miniature" in note for note in manifest.export.notes)


def test_a_model_that_cannot_stream_takes_all_steps(child: Child, tmp_path: Path) -> None:
    """The first exporter does wrong by Bloom; which one did right is in the manifest."""
    folder = zoo.write_model(tmp_path / "model", "bloom")
    planned = child.plan(str(folder), {"int4": [INT4]}).variants["int4"]
    assert planned.streams
    events = child.build(str(folder), planned, measure=False)
    manifest = _manifest(child, events)
    first, *others = manifest.export.tried
    assert first.startswith("mobius (streamed): ")
    assert others
    assert manifest.export.exporter != "mobius" or "plain" in manifest.graph.form
    begun = [(event.stage, event.index) for event in events if isinstance(event, StageBegun)]
    assert begun == [("fetch", 0), ("export", 1), ("export", 1), ("quantize", 2), ("publish", 3)]


def test_a_stage_that_cannot_run_says_where_it_is(child: Child, tmp_path: Path) -> None:
    """As it does after a written export."""
    folder = zoo.write_model(tmp_path / "model", "llama", hidden_size=36, head_dim=16)
    planned = child.plan(str(folder), {"int4": [INT4]}).variants["int4"]
    failed = child.build(str(folder), planned, measure=False)[-1]
    assert isinstance(failed, BuildFailed)
    assert failed.path == "variants.tested.chain[0].quantize.embedding_bits"


def test_exact_zeros_are_looked_for_where_there_are_any() -> None:
    """Rows without zeros need not be restored; one with a lost zero is still found."""
    from optimizers.block_quantization import Blocks, _check_zeros
    from optimizers.errors import StageError

    matrix = np.ones((3, 16), np.float32)
    blocks = Blocks(
        packed=np.full((3, 1, 8), 0x99, np.uint8),
        scales=np.ones((3, 1), np.float32),
        zero_points=None,
        bits=4,
        block_size=16,
    )
    _check_zeros(matrix, blocks)
    matrix[1, 3] = 0
    with pytest.raises(StageError, match="exact zeros"):
        _check_zeros(matrix, blocks)
