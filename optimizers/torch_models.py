"""The torch form of a model: loading it, asking it for logits, having it write text.

Owns the one way in which weights become a torch module (safetensors, no code of the model's own,
float32). Knows nothing of stages.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizers.errors import SourceError

_ROWS = 64  # sequences that are sampled side by side


def load_module(folder: Path, *, dtype: str = "float32") -> Any:
    """Load a model folder for inference.

    Raises:
        SourceError: transformers cannot make a causal language model of it.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # a build's standard error is a log
    try:
        module = _from_pretrained(folder, dtype)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise SourceError(
            f"transformers cannot load {folder.name}: {str(error).splitlines()[0]}",
            path="model",
            remedy="Name a causal language model that the installed transformers contains.",
        ) from error
    return module.eval()


def _from_pretrained(folder: Path, dtype: str) -> Any:
    """Load with attention of torch's own, whatever the config asks for.

    A config may name a kernel, which transformers would fetch from the hub and run.
    """
    from transformers import AutoModelForCausalLM

    load = partial(
        AutoModelForCausalLM.from_pretrained,
        folder,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    try:
        return load(attn_implementation="sdpa")
    except ValueError:  # an architecture without it says so before any weights are read
        return load(attn_implementation="eager")


class TorchScorer:
    """Logits of a torch module (implements ``artifacts.reference.Scorer``)."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def logits(self, tokens: NDArray[np.int64], first: int) -> NDArray[np.float32]:
        """Run one document through the module."""
        import torch

        with torch.inference_mode():
            output = self._module(input_ids=torch.from_numpy(tokens)[None], use_cache=False)
            logits: NDArray[np.float32] = output.logits[0, first:].float().numpy()
        return logits


def sample_text(module: Any, *, documents: int, length: int, seed: int) -> list[list[int]]:
    """Have a model write documents from nothing but its first token, at temperature 1."""
    import torch

    torch.manual_seed(seed)
    written: list[list[int]] = []
    while len(written) < documents:
        rows = min(_ROWS, documents - len(written))
        start = torch.full((rows, 1), _first_token(module), dtype=torch.int64)
        written += go_on(module, start, length=length).tolist()
    return written


def go_on(module: Any, start: Any, *, length: int) -> Any:
    """Have a model go on with (rows, tokens) until there are ``length``, at temperature 1."""
    import torch
    from transformers import GenerationConfig

    first = _first_token(module)
    count = length - start.shape[1]
    generation = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=count,
        min_new_tokens=count,
        bos_token_id=first,
        eos_token_id=module.config.get_text_config().eos_token_id,
        pad_token_id=first,
    )
    with torch.no_grad():
        return module.generate(
            start, attention_mask=torch.ones_like(start), generation_config=generation
        )


def _first_token(module: Any) -> int:
    config = module.config.get_text_config()
    if config.bos_token_id is not None:
        return int(config.bos_token_id)
    eos = config.eos_token_id
    return int(eos[0]) if isinstance(eos, list) else int(eos) if eos is not None else 0


def longest_input(module: Any) -> int:
    """How many tokens a module can be given at once."""
    config = module.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 1 << 20)


def save_module(module: Any, origin: Path, target: Path) -> None:
    """Write a changed module as safetensors, with the other files of the folder it came from."""
    from optimizers.model_folder import CONFIGS

    module.save_pretrained(target)
    for name in CONFIGS:
        if (origin / name).is_file() and not (target / name).exists() and "index" not in name:
            shutil.copyfile(origin / name, target / name)
