"""The architectures that are known to export right: what an error lists and the docs tabulate."""

from __future__ import annotations

SUPPORTED = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Phi3ForCausalLM",
    "GPT2LMHeadModel",
    "OPTForCausalLM",
    "GPTNeoXForCausalLM",
    "SmolLM3ForCausalLM",
    "GraniteForCausalLM",
    "Olmo2ForCausalLM",
    "PhiForCausalLM",
    "MixtralForCausalLM",
    "BloomForCausalLM",
    "FalconForCausalLM",
    "StableLmForCausalLM",
)
