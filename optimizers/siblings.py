"""Families of models with one tokenizer: what can stand in for what.

Owns the table, from which remedies name smaller siblings of a model. It is no check: whether token
ids mean the same is seen from the tokenizers themselves. Knows nothing of where models come from.
"""

from __future__ import annotations

from collections.abc import Iterable

from artifacts.protocol import FieldError

_OWNERS = {  # ids that the hub knows without an owner as well
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}


def _sizes(pattern: str, sizes: str) -> tuple[str, ...]:
    return tuple(pattern.format(size) for size in sizes.split())


_QWEN_2_5 = "72B 32B 14B 7B 3B 1.5B 0.5B"
_PYTHIA = "12b 6.9b 2.8b 1.4b 1b 410m 160m 70m"

# From large to small. distilgpt2 was distilled from gpt2.
_FAMILIES = (
    tuple(_OWNERS[name] for name in ("gpt2-xl", "gpt2-large", "gpt2-medium", "gpt2", "distilgpt2")),
    _sizes("Qwen/Qwen2.5-{}", _QWEN_2_5),
    _sizes("Qwen/Qwen2.5-{}-Instruct", _QWEN_2_5),
    _sizes("Qwen/Qwen2.5-Coder-{}", "32B 14B 7B 3B 1.5B 0.5B"),
    _sizes("Qwen/Qwen2.5-Coder-{}-Instruct", "32B 14B 7B 3B 1.5B 0.5B"),
    _sizes("Qwen/Qwen3-{}", "32B 14B 8B 4B 1.7B 0.6B"),
    _sizes("Qwen/Qwen3-{}-Base", "14B 8B 4B 1.7B 0.6B"),
    _sizes("HuggingFaceTB/SmolLM2-{}", "1.7B 360M 135M"),
    _sizes("HuggingFaceTB/SmolLM2-{}-Instruct", "1.7B 360M 135M"),
    _sizes("meta-llama/Llama-3.2-{}", "3B 1B"),
    _sizes("meta-llama/Llama-3.2-{}-Instruct", "3B 1B"),
    _sizes("EleutherAI/pythia-{}", _PYTHIA),
    _sizes("EleutherAI/pythia-{}-deduped", _PYTHIA),
    _sizes("facebook/opt-{}", "66b 30b 13b 6.7b 2.7b 1.3b 350m 125m"),
    _sizes("bigscience/bloom-{}", "7b1 3b 1b7 1b1 560m"),
)


def smaller_siblings(model: str) -> tuple[str, ...]:
    """Hub ids of smaller models with the tokenizer of a model, the largest first.

    Args:
        model: What a config calls it; a folder by its last part.
    """
    wanted = _OWNERS.get(model, model).lower()
    for family in _FAMILIES:
        ids = [name.lower() for name in family]
        if "/" not in wanted:  # a copy on this disk, named as on the hub
            ids = [name.partition("/")[2] for name in ids]
        if wanted in ids:
            return family[ids.index(wanted) + 1 :]
    return ()


def suggestion(model: str) -> str:
    """A sentence that names smaller siblings of a model; empty where none are known."""
    known = smaller_siblings(model)
    return f"With the tokenizer of {model}: {', '.join(known)}." if known else ""


def suggesting(errors: Iterable[FieldError], model: str) -> list[FieldError]:
    """The same errors, with siblings of the model in the remedy of those about a substitute."""
    told = suggestion(model)
    return [
        error.model_copy(update={"remedy": f"{error.remedy} {told}".strip()})
        if told and error.path.endswith(".substitute")
        else error
        for error in errors
    ]
