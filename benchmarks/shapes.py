"""Models of a given shape with random weights, written as Hugging Face folders.

Owns names and sizes of the tensors, the config in the words that both generations of transformers
read, and a tokenizer whose vocabulary is as large as the model's. Speed depends on shape alone, so
nothing has to be downloaded. Knows nothing of who loads the folder.
"""

from __future__ import annotations

import itertools
import json
import shutil
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WEIGHT_STD = 0.08  # large enough for logits to have a scale and for greedy text not to repeat
_FORMAT = 2  # raise it when a folder written before must be written anew
_END = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama-shaped decoder with tied embeddings."""

    name: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    max_length: int

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return sum(int(np.prod(shape)) for _, shape in _tensors(self))


SHAPES = {
    shape.name: shape
    for shape in (
        # HuggingFaceTB/SmolLM2-135M
        Shape("smollm2-135m", 49_152, 576, 1_536, 30, 9, 3, 8_192),
        # Qwen/Qwen2.5-0.5B and meta-llama/Llama-3.2-1B
        Shape("qwen2.5-0.5b", 151_936, 896, 4_864, 24, 14, 2, 32_768),
        Shape("llama-3.2-1b", 128_256, 2_048, 8_192, 16, 32, 8, 131_072),
        Shape("tiny", 512, 64, 128, 2, 4, 2, 4_096),
    )
}


def make_model(
    folder: Path, shape: Shape, seed: int = 0, dtype: Literal["float32", "float16"] = "float32"
) -> Path:
    """The folder of a model, written if it is not there yet.

    Args:
        folder: Where models lie; the model gets a folder of its own in it.
        shape: Its sizes.
        seed: Of the weights.
        dtype: Of the weights.
    """
    half = "-half" if dtype == "float16" else ""
    model = folder / f"{shape.name}{half}-{seed}-v{_FORMAT}"
    if model.is_dir():
        return model
    draft = model.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    _write_config(draft, shape, dtype)
    _write_tokenizer(draft, shape)
    _write_weights(draft, shape, seed, dtype)
    draft.rename(model)
    return model


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight; matrices are (out, in)."""
    head = shape.hidden // shape.heads
    kv = head * shape.kv_heads
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (shape.hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (shape.hidden, shape.hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (kv, shape.hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (kv, shape.hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (shape.hidden, shape.hidden)
        yield f"{prefix}.post_attention_layernorm.weight", (shape.hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{prefix}.mlp.up_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{prefix}.mlp.down_proj.weight", (shape.hidden, shape.intermediate)
    yield "model.norm.weight", (shape.hidden,)


def _write_weights(folder: Path, shape: Shape, seed: int, dtype: str) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)

    def draw(size: tuple[int, ...]) -> NDArray[np.floating]:
        if len(size) == 1:  # a norm's scale
            return np.ones(size, dtype)
        drawn = rng.standard_normal(size, np.float32) * np.float32(WEIGHT_STD)
        return drawn.astype(dtype, copy=False)

    weights = {name: draw(size) for name, size in _tensors(shape)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write_config(folder: Path, shape: Shape, dtype: str) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.max_length,
        "rope_theta": 100_000.0,  # transformers 4 knows this place only; 5 moves it by itself
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    generation = {"bos_token_id": 0, "eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))


def _write_tokenizer(folder: Path, shape: Shape) -> None:
    """A byte-level BPE of exactly the model's vocabulary: bytes, then runs of letters."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = [_END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for head, letter in _letter_runs():
        if len(pieces) == shape.vocabulary:
            break
        merges.append((head, letter))
        pieces.append(head + letter)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_length,
        "bos_token": _END,
        "eos_token": _END,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=2))


def _letter_runs() -> Iterator[tuple[str, str]]:
    """(run, letter) such that every run is a letter or was yielded before."""
    for length in itertools.count(1):
        for run in itertools.product(string.ascii_lowercase, repeat=length):
            for letter in string.ascii_lowercase:
                yield "".join(run), letter
