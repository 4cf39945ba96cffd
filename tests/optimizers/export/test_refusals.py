"""What cannot be exported is refused with its name, the reasons, and what would work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import zoo
from optimizers.errors import ExportError
from optimizers.export import chain, export


def refused(folder: Path, out: Path) -> ExportError:
    """Export and return the error."""
    with pytest.raises(ExportError) as caught:
        export(folder, out, progress=lambda *_: None, threads=1)
    return caught.value


def config_folder(folder: Path, config: dict[str, Any]) -> Path:
    """Write a folder that holds nothing but a config."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "architecture"), [("mamba", "MambaForCausalLM"), ("rwkv", "RwkvForCausalLM")]
)
def test_models_without_attention_are_refused_by_name(
    name: str, architecture: str, zoo_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A recurrent model has no key-value cache: the error names it and lists what works."""
    error = refused(zoo_folder(name), tmp_path)
    assert architecture in str(error)
    assert "LlamaForCausalLM" in error.remedy
    assert error.path == "model"
    assert list(tmp_path.iterdir()) == []


def test_every_exporter_gives_its_reason(zoo_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """When nothing works, the error holds what each exporter said."""
    message = str(refused(zoo_folder("rwkv"), tmp_path))
    assert "mobius: " in message
    assert "trace: " in message


def test_a_module_that_cannot_be_run_is_told_once(
    zoo_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what all exporters are compared with: its failure is none of theirs."""
    asked: list[Any] = []

    def fail(decoder: Any, **_: Any) -> None:
        asked.append(decoder)
        raise ValueError(f"{decoder.folder}/config.json has no hidden size")

    monkeypatch.setattr(chain, "make_reference", fail)
    error = refused(zoo_folder("llama"), tmp_path)
    assert "LlamaForCausalLM" in str(error)
    assert "its torch module cannot be run: ValueError: config.json has no hidden" in str(error)
    assert "mobius" not in str(error)
    assert "LlamaForCausalLM" in error.remedy
    assert len(asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lack_of_memory_is_no_refusal_of_the_architecture(
    zoo_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a larger machine the same model is exported."""

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(chain, "make_reference", fail)
    with pytest.raises(MemoryError):
        export(zoo_folder("llama"), tmp_path, progress=lambda *_: None, threads=1)


def test_an_encoder_is_refused_by_name(tmp_path: Path) -> None:
    """BERT is no causal language model, though its type has one."""
    folder = config_folder(tmp_path, {"architectures": ["BertForMaskedLM"], "model_type": "bert"})
    error = refused(folder, tmp_path / "out")
    assert "BertForMaskedLM" in str(error)
    assert "not a causal language model" in str(error)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "never run"),
        ({"architectures": ["OddForCausalLM"], "model_type": "odd"}, "'odd'"),
        (
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "quantization_config": {"quant_method": "gptq"},
            },
            "quantized already",
        ),
        (
            {
                "architectures": ["GPTNeoForCausalLM"],
                "model_type": "gpt_neo",
                "num_layers": 2,
                "attention_types": [[["global", "local"], 1]],
                "window_size": 256,
            },
            "its local attention (window_size) is not supported",
        ),
        ({}, "(none named)"),
    ],
)
def test_a_config_that_cannot_be_served_says_why(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Remote code, unknown types and quantized checkpoints are refused before any work."""
    assert words in str(refused(config_folder(tmp_path, config), tmp_path / "out"))


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_an_unreadable_config_is_an_error_of_the_model(content: str | None, tmp_path: Path) -> None:
    """A folder in another layout gets a sentence, not a traceback."""
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    assert refused(tmp_path, tmp_path / "out").path == "model"


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    """A folder without safetensors is refused, whatever else lies in it."""
    zoo.make_config("llama", architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert "safetensors" in str(refused(tmp_path, tmp_path / "out"))
