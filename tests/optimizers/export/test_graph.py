"""The form of what is exported: inputs, files, bytes, lengths, and the record of what was tried."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks import zoo
from optimizers.export import Exported, export, mobius_exporter
from optimizers.export.decoder import LONGEST, read_decoder
from optimizers.export.packed import UnpackableError, pack

STEP_INPUTS = {
    "input_ids",
    "pad_index",
    "unpad_index",
    "query_seqlens",
    "seqlens_k",
    "total_sequence_length",
    "logit_positions",
    "sampled_rows",
    "inverse_temperatures",
}


def quiet(fraction: float, message: str) -> None:
    """Take progress and say nothing."""


def test_the_packed_graph_has_the_inputs_of_the_session(exported: Callable[[str], Any]) -> None:
    """No mask, no positions that nothing reads, one cache per layer."""
    graph = exported("llama").graph
    cache = {name for layer in graph.layers for name in (layer.past_key, layer.past_value)}
    assert set(graph.inputs) == STEP_INPUTS | cache
    assert graph.form == "packed"
    assert graph.vocab_size == zoo.VOCABULARY
    assert graph.max_length == zoo.LENGTH
    assert [(layer.heads, layer.key_dim, layer.value_dim) for layer in graph.layers] == [
        (2, 16, 16)
    ] * 2


def test_positions_are_an_input_only_where_they_are_read(
    exported: Callable[[str], Exported],
) -> None:
    """Learned positions are looked up outside of attention."""
    assert "position_ids" in exported("gpt2").graph.inputs


def test_names_are_unique_and_tell_nothing_of_the_machine(
    exported: Callable[[str], Exported], zoo_folder: Callable[[str], Path]
) -> None:
    """A graph can be edited by name, and two machines write the same bytes."""
    path = exported("llama").model
    graph = ir.load(path).graph
    assert max(Counter(node.name for node in graph).values()) == 1
    outputs = Counter(value.name for node in graph for value in node.outputs if value.name)
    assert max(outputs.values()) == 1
    content = path.read_bytes()
    assert str(zoo_folder("llama")).encode() not in content
    assert b"site-packages" not in content


def test_all_large_weights_lie_in_one_file(exported: Callable[[str], Exported]) -> None:
    """The artifact is two files, and every weight is in the second."""
    path = exported("llama").model
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    for value in ir.load(path).graph.initializers.values():
        tensor = value.const_value
        if tensor.nbytes >= 1024:
            assert isinstance(tensor, ir.ExternalTensor)
            assert tensor.location == "model.onnx.data"


@pytest.mark.parametrize("name", ["llama3_rope", "falcon"])
def test_no_weight_is_transposed_at_run_time(
    name: str, exported: Callable[[str], Exported]
) -> None:
    """A head that shares its weight with the embedding reads it as it lies: it is stored once."""
    graph = ir.load(exported(name).model).graph
    head = next(value for value in graph.outputs if value.name == "logits").producer()
    assert head.op_type == "FusedMatMul"
    weight = head.inputs[1]
    assert list(weight.shape) == [zoo.VOCABULARY, 64]
    assert {user.op_type for user, _ in weight.uses()} == {"FusedMatMul", "Gather"}
    table = weight.const_value.numpy()
    arrays = {name: one.const_value.numpy() for name, one in graph.initializers.items()}
    alike = {name for name, one in arrays.items() if one.size == table.size and one.ndim == 2}
    assert [
        name
        for name in alike
        if any(np.array_equal(table, one) for one in (arrays[name], arrays[name].T))
    ] == [weight.name]
    for node in graph:
        if node.op_type == "Transpose":
            assert node.inputs[0].const_value is None


def test_the_same_model_gives_the_same_bytes(
    exported: Callable[[str], Exported], zoo_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """An artifact's identity is its content: it must not change from build to build."""
    again = export(zoo_folder("llama"), tmp_path, progress=quiet, threads=1)
    for name in ("model.onnx", "model.onnx.data"):
        digests = {
            hashlib.sha256((path.parent / name).read_bytes()).hexdigest()
            for path in (exported("llama").model, again.model)
        }
        assert len(digests) == 1, name


def test_shards_and_links_of_a_download_cache_are_read(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    """Weights in several files, each a link to elsewhere, give the same graph."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    zoo.make_model("llama").save_pretrained(blobs, max_shard_size="60KB")
    assert len(list(blobs.glob("*.safetensors"))) > 1
    folder.mkdir()
    for file in blobs.iterdir():
        (folder / file.name).symlink_to(file)
    again = export(folder, tmp_path / "out", progress=quiet, threads=1)
    assert again.model.read_bytes() == exported("llama").model.read_bytes()


def test_files_beside_the_weights_are_no_part_of_the_model(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    """An older state that lies in the folder changes nothing."""
    from safetensors.torch import load_file, save_file

    folder = zoo.write_model(tmp_path / "model", "llama")
    old = {name: weight * 0 for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(old, folder / "z_old.safetensors")
    mobius_exporter.export_packed(read_decoder(folder), tmp_path / "out")
    for name in ("model.onnx", "model.onnx.data"):
        written = (tmp_path / "out" / name).read_bytes()
        assert written == (exported("llama").model.parent / name).read_bytes()


def test_weights_in_half_precision_are_served_in_float32(tmp_path: Path) -> None:
    """A bfloat16 checkpoint is exported with its very values."""
    import torch

    model = zoo.make_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    exported = export(tmp_path / "model", tmp_path / "out", progress=quiet, threads=1)
    assert exported.record.exporter == "mobius"
    for value in ir.load(exported.model).graph.initializers.values():
        assert value.dtype != ir.DataType.BFLOAT16


def test_huge_contexts_are_capped(tmp_path: Path) -> None:
    """The rotary tables of a long context do not outgrow the weights."""
    folder = zoo.write_model(tmp_path / "model", "llama", max_position_embeddings=1 << 20)
    decoder = read_decoder(folder)
    graph = mobius_exporter.export_packed(decoder, tmp_path / "out")
    assert graph.max_length == LONGEST
    tables = ir.load(tmp_path / "out" / "model.onnx").graph.initializers
    assert tables["rotary.0.cos"].shape == (LONGEST, 8)


def test_lengths_beyond_the_short_frequencies_are_not_offered(
    exported: Callable[[str], Exported],
) -> None:
    """A model that swaps its frequencies at a length is served up to it."""
    assert exported("phi3_longrope").graph.max_length == zoo.LENGTH // 2


def test_a_mismatch_moves_on_to_the_next_exporter(exported: Callable[[str], Exported]) -> None:
    """A wrong graph is recorded with its error and never used: mobius forgets these biases."""
    record = exported("llama_mlp_bias").record
    assert record.tried[0].startswith("mobius: whole: logits differ by")
    assert record.exporter == "trace"
    assert record.max_logit_error < 1e-4 * record.logit_scale


def test_progress_begins_at_zero_and_ends_at_one(
    zoo_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Whoever watches sees fractions that never go back."""
    seen: list[float] = []
    folder = zoo_folder("llama")
    export(folder, tmp_path, progress=lambda fraction, _: seen.append(fraction), threads=1)
    assert seen[0] == 0.0
    assert seen[-1] == 1.0
    assert seen == sorted(seen)


def test_a_graph_without_known_attention_is_not_packed(
    zoo_folder: Callable[[str], Path],
) -> None:
    """Surgery refuses what it does not understand."""
    x = ir.Value(name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1, "n"]))
    node = ir.node("Identity", [x])
    node.outputs[0].name = "logits"
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23})
    decoder = read_decoder(zoo_folder("llama"))
    with pytest.raises(UnpackableError, match="0 of 2 layers"):
        pack(ir.Model(graph, ir_version=10), decoder, None)


def test_rotary_tables_are_those_of_transformers(zoo_folder: Callable[[str], Path]) -> None:
    """Every layer rotates by its own kind's frequencies, scaling included."""
    import torch

    from optimizers.export.decoder import empty_module, rotary_tables

    decoder = read_decoder(zoo_folder("gemma3"))
    tables = rotary_tables(decoder, empty_module(decoder.config))
    assert tables is not None
    assert tables[0] is tables[1]
    rotary = zoo.make_model("gemma3").model.rotary_emb
    positions = torch.arange(zoo.LENGTH)[None]
    for layer, kind in enumerate(decoder.config.layer_types):
        cos, sin = rotary(torch.zeros(1), positions, kind)
        np.testing.assert_allclose(tables[layer].cos, cos[0, :, :8].numpy(), atol=1e-6)
        np.testing.assert_allclose(tables[layer].sin, sin[0, :, :8].numpy(), atol=1e-6)
