"""What a model folder must be to be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.layout import Layout
from benchmarks import zoo
from optimizers.errors import SourceError
from optimizers.export.decoder import read_decoder
from optimizers.generation_config import generation_defaults
from optimizers.model_folder import check_folder, content_revision, is_allowed, weights_files
from optimizers.sources import fetch, local_folder, pin
from optimizers.tokenizer_files import tokenizer_bytes
from optimizers.torch_models import load_module


@pytest.fixture
def folder(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    """Give a copy to break."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_llama_folder, copy)
    return copy


def _edit(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_model_with_code_of_its_own_is_refused(folder: Path, name: str) -> None:
    """auto_map names Python files; they are never run, so the model cannot be served."""
    _edit(folder / name, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    with pytest.raises(SourceError, match=f"{name}.*auto_map"):
        check_folder(folder)


def test_an_empty_map_brings_no_code(folder: Path) -> None:
    """Some tools write the key in any case; checking and exporting agree on what it means."""
    _edit(folder / "config.json", auto_map={})
    check_folder(folder)
    assert read_decoder(folder).architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "someone/kernel"},
        {"attn_implementation": {"text_config": "paged|someone/kernel"}},
        {"experts_implementation": "someone/kernel"},
        {"text_config": {"_attn_implementation": "someone/kernel"}},
        {"_attn_implementation": "flash_attention_2"},
    ],
)
def test_native_code_of_the_hub_is_refused(folder: Path, fields: dict[str, Any]) -> None:
    """Transformers would fetch and load it without being asked."""
    _edit(folder / "config.json", **fields)
    with pytest.raises(SourceError, match=r"config\.json.*_implementation.*never run") as caught:
        check_folder(folder)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["eager", "flash_attention_2", "no_such_attention"])
def test_the_attention_that_a_config_asks_for_is_not_used(folder: Path, name: str) -> None:
    """What computes the model is chosen here, whatever would be installed or fetched for it."""
    _edit(folder / "config.json", attn_implementation=name)
    check_folder(folder)
    assert load_module(folder).config._attn_implementation == "sdpa"


def test_a_module_without_sdpa_attends_eagerly(tmp_path: Path) -> None:
    """Some architectures have nothing else."""
    module = load_module(zoo.write_model(tmp_path / "bloom", "bloom"))
    assert module.config._attn_implementation == "eager"


def test_weights_of_another_name_are_refused(folder: Path) -> None:
    """They would be loaded by torch, and be no part of the revision."""
    _edit(folder / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(SourceError, match="transformers_weights"):
        check_folder(folder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "tf_model.h5", "model.gguf", "adapter.safetensors"]
)
def test_weights_in_other_formats_are_refused(folder: Path, name: str) -> None:
    """Only safetensors are read, and the error says what was found instead."""
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(SourceError, match=name) as caught:
        check_folder(folder)
    assert "safetensors" in caught.value.remedy


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    """An empty folder is no model."""
    with pytest.raises(SourceError, match=r"no config\.json"):
        check_folder(tmp_path)


def test_a_config_that_is_no_json_is_refused(folder: Path) -> None:
    """The error names the file."""
    (folder / "config.json").write_text("{")
    with pytest.raises(SourceError, match=r"config\.json is no JSON"):
        check_folder(folder)


def test_a_quantized_model_is_refused(folder: Path) -> None:
    """Quantization is a stage here, and its original is what quality is measured against."""
    _edit(folder / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(SourceError, match="gptq"):
        check_folder(folder)
    _edit(folder / "config.json", quantization_config=True)
    with pytest.raises(SourceError, match=r"quantized \(unknown\)"):
        check_folder(folder)


@pytest.mark.parametrize("shard", ["model-00002-of-00002.safetensors", "../../etc/passwd"])
def test_an_index_must_name_files_that_are_there(folder: Path, shard: str) -> None:
    """A shard that is missing, or lies elsewhere, is told before anything is loaded."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="its index names"):
        check_folder(folder)


@pytest.mark.parametrize("places", [None, [], {}, {"a": 1}, {"a": ["b"]}, "model.safetensors"])
def test_an_index_that_maps_nothing_is_refused(folder: Path, places: Any) -> None:
    """The error names the file and its field."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(SourceError, match=r"weight_map of .*index\.json"):
        check_folder(folder)


def test_shards_without_an_index_are_refused(folder: Path) -> None:
    """Nothing would say which of them belong together."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    with pytest.raises(SourceError, match=r"neither .*index\.json"):
        check_folder(folder)


def test_only_the_models_own_weights_count(folder: Path) -> None:
    """An older state or a second copy beside the model is no part of it."""
    content = (folder / "model.safetensors").read_bytes()
    for name in ("z_old.safetensors", "consolidated.safetensors"):
        (folder / name).write_bytes(content)
    assert weights_files(folder) == [folder / "model.safetensors"]
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(content)
    (folder / "model-00001-of-00009.safetensors").write_bytes(content)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": dict(zip("abc", [*shards[::-1], shards[0]], strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_files(folder) == [folder / shard for shard in shards]


_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 5\n"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda _: _LFS_POINTER, "Git LFS pointer"),
        (lambda content: content[:-1], "truncated: it has"),
        (lambda content: content[:100], "truncated: it ends in its header"),
        (lambda _: b"", "truncated"),
        (lambda content: content + b"more", "damaged"),
        (lambda _: b"<html>404</html>", "no safetensors file"),
        (lambda _: (2).to_bytes(8, "little") + b"[]", "header cannot be read"),
        (lambda _: (9).to_bytes(8, "little") + b'{"a": {}}', "header cannot be read"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00001.safetensors"])
def test_weights_that_are_not_whole_are_refused(
    folder: Path, damage: Callable[[bytes], bytes], words: str, name: str
) -> None:
    """The file is named, and the remedy is to fetch it again, before anything is loaded."""
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(damage(content))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(SourceError, match=f"{name} is .*{words}") as caught:
        check_folder(folder)
    assert "Fetch the model again" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"eos_token_id": "x"}', "eos_token_id"),
        ('{"eos_token_id": [[1]]}', "eos_token_id"),
        ('{"eos_token_id": true}', "eos_token_id"),
        ('{"temperature": "hot"}', "temperature"),
        ('{"temperature": NaN}', "temperature"),
        ('{"top_k": 40.5}', "top_k"),
        ('{"top_p"', "no JSON"),
        ("[]", "no JSON object"),
    ],
)
def test_generation_defaults_that_mean_nothing_are_refused(
    folder: Path, content: str, words: str
) -> None:
    """They are needed last: found only then, a mistake would cost the whole build."""
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(SourceError, match=words) as caught:
        check_folder(folder)
    assert "generation_config.json" in str(caught.value)
    assert caught.value.remedy


def test_generation_defaults_come_from_both_configs(folder: Path) -> None:
    """The model's own file wins; the end of a text may be named in the other alone."""
    _edit(folder / "config.json", eos_token_id=[5, 6, 5], bos_token_id=1)
    (folder / "generation_config.json").write_text('{"temperature": 0.5, "top_k": null}')
    defaults = generation_defaults(folder)
    assert defaults.eos_token_ids == (5, 6)
    assert (defaults.bos_token_id, defaults.temperature, defaults.top_k) == (1, 0.5, None)
    _edit(folder / "config.json", eos_token_id=[[1]])
    with pytest.raises(SourceError, match=r"eos_token_id of .*/config\.json"):
        generation_defaults(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_cannot_be_read_is_an_error_of_the_model(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """The system's refusal is told with the file's name; here it is an error of the device."""
    (folder / name).unlink()
    (folder / name).symlink_to("/proc/self/mem")
    with pytest.raises(SourceError, match="cannot be read") as caught:
        pin(str(folder), None, layout=Layout(tmp_path / "none"), offline=True)
    assert caught.value.path == "model"
    assert "read access" in caught.value.remedy


def test_only_named_files_are_read() -> None:
    """Code, other formats and folders are not on the list."""
    assert is_allowed("model-00001-of-00002.safetensors")
    assert is_allowed("tokenizer.json")
    for name in ("modeling.py", "tokenizer.py", "onnx/model.safetensors", "pytorch_model.bin"):
        assert not is_allowed(name)


def test_a_revision_is_remembered_by_size_and_mtime(folder: Path, tmp_path: Path) -> None:
    """The second look reads no weights; a store that cannot be written only looks again."""
    layout = Layout(tmp_path / "store")
    layout.create()
    first = content_revision(folder, layout)
    (record,) = layout.sources.iterdir()
    content = json.loads(record.read_bytes())
    content["model.safetensors"][2] = "0" * 64
    record.write_text(json.dumps(content))
    assert content_revision(folder, layout) != first  # it was read from the record
    (folder / "model.safetensors").touch()
    assert content_revision(folder, layout) == first
    assert content_revision(folder, Layout(tmp_path / "none")) == first
    assert content_revision(folder, None) == first


def test_a_record_that_cannot_be_written_stops_nothing(folder: Path, tmp_path: Path) -> None:
    """It only saves the next start a hash."""
    layout = Layout(tmp_path / "store")
    layout.create()
    layout.tmp.rmdir()  # fails like a full disk, for root too
    assert content_revision(folder, layout) == content_revision(folder, None)
    assert list(layout.sources.iterdir()) == []


def test_a_license_is_taken_from_the_card(folder: Path, tmp_path: Path) -> None:
    """The manifest tells under which terms the model came."""
    (folder / "README.md").write_text("---\ntags: [a]\nlicense: apache-2.0\n---\n# Card\n")
    layout = Layout(tmp_path / "store")
    source = fetch(str(folder), None, layout=layout, offline=True, report=lambda *_: None)
    assert source.model.license == "apache-2.0"
    assert source.model.architecture == "LlamaForCausalLM"
    assert source.model.id == "model"


@pytest.mark.parametrize(
    "name",
    ["/none", "./none", "~/none", "~nouser/x", "a/b/c", "", "what is this?", "a" * 97, "a" * 400],
)
def test_a_name_that_means_nothing_is_refused(name: str) -> None:
    """A path that is not there is not looked up on the hub."""
    with pytest.raises(SourceError):
        local_folder(name)


def test_a_folder_takes_no_hub_revision(folder: Path, tmp_path: Path) -> None:
    """A branch name beside a folder would mean nothing."""
    layout = Layout(tmp_path / "store")
    with pytest.raises(SourceError, match="has none") as caught:
        pin(str(folder), "main", layout=layout, offline=True)
    assert caught.value.path == "revision"
    pinned = pin(str(folder), None, layout=layout, offline=True)
    assert pin(str(folder), pinned.revision, layout=layout, offline=True) == pinned


def test_the_demo_is_a_source(tmp_path: Path) -> None:
    """The model that ships with the project needs no network."""
    pinned = pin("demo", None, layout=Layout(tmp_path), offline=True)
    assert pinned.id == "demo"
    assert pinned.folder is not None


def test_a_missing_tokenizer_is_converted_from_older_files(tmp_path: Path) -> None:
    """vocab.json and merges.txt of a GPT-2 become a tokenizer.json."""
    vocabulary = {chr(97 + index): index for index in range(26)} | {"ab": 26, "<|endoftext|>": 27}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    _edit(tmp_path / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    _edit(tmp_path / "config.json", model_type="gpt2")
    content = json.loads(tokenizer_bytes(tmp_path))
    assert content["model"]["vocab"]["ab"] == 26


def test_a_tokenizer_that_cannot_be_made_is_told(folder: Path) -> None:
    """Without any tokenizer file there is nothing to convert."""
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"no tokenizer\.json"):
        tokenizer_bytes(folder)
