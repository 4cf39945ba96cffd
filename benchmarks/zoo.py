"""Small random models of many architectures, written as Hugging Face folders with a tokenizer.

Tests and benches share it. Weights are drawn at standard deviation 0.08, so that logits have a
scale worth comparing and greedy text does not repeat one token; sliding windows are shorter than
the prompts that are used. Knows nothing of exporting or serving.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 256
EOS_ID = 0
EOS_TOKEN = "<|end|>"  # noqa: S105 - a word of the vocabulary
WINDOW = 16
LENGTH = 256
WEIGHT_STD = 0.08

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "bos_token_id": EOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": None,
}
# Random models whose head is their embedding mostly repeat the last token: no text to compare.
_UNTIED = {"tie_word_embeddings": False}
_GEMMA = {
    # Its square root is neither of two digits nor a float16.
    "hidden_size": 96,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 16,
}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}

# model: (transformers config class, what differs from _COMMON)
_LLAMA_LIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama3_rope": (
        "LlamaConfig",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama_linear_rope": (
        "LlamaConfig",
        {
            "attention_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
    "llama_mlp_bias": ("LlamaConfig", {"mlp_bias": True}),
    "llama_yarn_rope": (
        "LlamaConfig",
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama_dynamic_rope": (
        "LlamaConfig",
        {
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    # Half of the positions have frequencies of their own; only that half can be served.
    "phi3_longrope": (
        "Phi3Config",
        {
            "sliding_window": None,
            "original_max_position_embeddings": LENGTH // 2,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0 + 0.05 * i for i in range(8)],
                "long_factor": [1.0 + 0.5 * i for i in range(8)],
                "original_max_position_embeddings": LENGTH // 2,
            },
        },
    ),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2Config", {**_GEMMA, **_UNTIED}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **_GEMMA,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            **_UNTIED,
        },
    ),
    "gemma2_tied": ("Gemma2Config", _GEMMA),
    "gemma3_tied": ("Gemma3TextConfig", _GEMMA),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "phi3_window": ("Phi3Config", {"sliding_window": WINDOW}),  # as the real Phi-3-mini has one
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 4, **_UNTIED}),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 2.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.8,
            "attention_multiplier": 0.2,
        },
    ),
    "olmo2": ("Olmo2Config", {}),
    "phi": ("PhiConfig", {"num_key_value_heads": 4}),
    # The rotary part of a head, 32 of 64, is real Phi's half.
    "phi_wide": (
        "PhiConfig",
        {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2},
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "stablelm": ("StableLmConfig", {}),
    "stablelm_wide": (
        "StableLmConfig",
        {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2},
    ),
}

_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT2),
    "gpt2_odd_vocabulary": ("GPT2Config", {**_GPT2, "vocab_size": 251}),
    "opt": (
        "OPTConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "max_position_embeddings": LENGTH,
            **_UNTIED,
        },
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": LENGTH,
        },
    ),
    # 64 wide heads with a quarter rotated, as in Pythia.
    "gpt_neox_wide": (
        "GPTNeoXConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": LENGTH,
        },
    ),
    "bloom": (
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4, **_UNTIED},
    ),
    "falcon": (
        "FalconConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": LENGTH,
        },
    ),
    "mamba": (
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 4},
    ),
    "rwkv": (
        "RwkvConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "context_length": LENGTH,
        },
    ),
}

TIER_1 = ("llama", "mistral", "gemma2", "gemma3", "qwen2", "qwen3", "phi3", "gpt2")
TIER_2 = (
    "opt",
    "gpt_neox",
    "smollm3",
    "granite",
    "olmo2",
    "phi",
    "mixtral",
    "bloom",
    "falcon",
    "stablelm",
)
VARIANTS = (
    "gemma2_tied",
    "gemma3_tied",
    "llama3_rope",
    "llama_linear_rope",
    "llama_yarn_rope",
    "llama_dynamic_rope",
    "phi3_longrope",
    "phi3_window",
    "phi_wide",
    "gpt_neox_wide",
    "stablelm_wide",
    "gpt2_odd_vocabulary",
)

# Seeds with which greedy text visits many tokens; 0 where not named.
_SEEDS = {
    "llama": 2,
    "qwen2": 1,
    "phi3": 2,
    "phi3_window": 2,
    "gpt2": 16,
    "opt": 22,
    "gpt_neox": 49,
    "smollm3": 56,
    "olmo2": 1,
    "phi": 27,
    "mixtral": 1,
    "falcon": 29,
    "stablelm": 2,
}


def make_config(name: str, **changes: Any) -> Any:
    """Make the transformers config of a small model, with single fields changed."""
    import transformers

    if name in _LLAMA_LIKE:
        class_name, differences = _LLAMA_LIKE[name]
        fields = {**_COMMON, **differences}
    else:
        class_name, fields = _OTHERS[name]
        fields = {**fields, "bos_token_id": EOS_ID, "eos_token_id": EOS_ID, "pad_token_id": None}
    return getattr(transformers, class_name)(**{**fields, **changes})


def make_model(name: str, *, seed: int | None = None, **changes: Any) -> Any:
    """Make a small random causal language model in float32; ``seed`` None = the name's own."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(make_config(name, **changes)).eval().float()
    generator = torch.Generator().manual_seed(_SEEDS.get(name, 0) if seed is None else seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * WEIGHT_STD
            # Biases and norms keep their centre (0 or 1), so that none can be lost unnoticed.
            parameter.copy_(noise if parameter.dim() >= 2 else parameter + noise)
    return model


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer: one token per byte; byte 0's place belongs to the EOS."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = _byte_alphabet()
    vocabulary = {character: index for index, character in enumerate(alphabet) if index != EOS_ID}
    tokenizer = Tokenizer(models.BPE(vocab={EOS_TOKEN: EOS_ID, **vocabulary}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(EOS_TOKEN, special=True)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS_TOKEN, model_max_length=LENGTH
    ).save_pretrained(folder)


def write_model(folder: Path, name: str, *, seed: int | None = None, **changes: Any) -> Path:
    """Write a small random model and its tokenizer as a Hugging Face folder; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(name, seed=seed, **changes).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def _byte_alphabet() -> list[str]:
    """Return the printable stand-ins that byte-level BPE uses, in the order of the bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
