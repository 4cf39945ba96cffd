"""What a model folder must be to be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from artifacts.layout import Layout
from optimizers.errors import SourceError
from optimizers.model_folder import check_folder, content_revision, is_allowed
from optimizers.sources import fetch, local_folder, pin
from optimizers.tokenizer_files import tokenizer_bytes


@pytest.fixture
def folder(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    """Give a copy to break."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_llama_folder, copy)
    return copy


def _edit(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_with_code_of_its_own_is_refused(folder: Path, name: str) -> None:
    """auto_map names Python files; they are never run, so the model cannot be served."""
    _edit(folder / name, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    with pytest.raises(SourceError, match=f"{name}.*auto_map"):
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


@pytest.mark.parametrize("shard", ["model-00002-of-00002.safetensors", "../../etc/passwd"])
def test_an_index_must_name_files_that_are_there(folder: Path, shard: str) -> None:
    """A shard that is missing, or lies elsewhere, is told before anything is loaded."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="its index names"):
        check_folder(folder)


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


def test_a_license_is_taken_from_the_card(folder: Path, tmp_path: Path) -> None:
    """The manifest tells under which terms the model came."""
    (folder / "README.md").write_text("---\ntags: [a]\nlicense: apache-2.0\n---\n# Card\n")
    layout = Layout(tmp_path / "store")
    source = fetch(str(folder), None, layout=layout, offline=True, report=lambda *_: None)
    assert source.model.license == "apache-2.0"
    assert source.model.architecture == "LlamaForCausalLM"
    assert source.model.id == "model"


@pytest.mark.parametrize("name", ["/none", "./none", "~/none", "a/b/c", "", "what is this?"])
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
