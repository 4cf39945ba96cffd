"""The oracle: what transformers' torch module says about a few texts, in float32.

Owns the choice of texts: one of random tokens, longer than any sliding window, with the module's
greedy continuation; and shorter ones, its neighbours in a ragged batch. A longer window is cut to
``WINDOW`` tokens in the module's config, so that no text has to be longer, however large the model.
Knows nothing of ONNX or of the graph under test.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from optimizers.export.decoder import Decoder

GENERATED = 16  # tokens of each text that are fed one at a time
WINDOW = 16  # the longest sliding window that texts are read with
_PROMPT = 40  # of the first text: well past that window
_OTHER_PROMPTS = (1, 23)
_SEED = 20


@dataclass(frozen=True, slots=True)
class ReferenceText:
    """One text and what the module says at each of its positions.

    Attributes:
        tokens: (n,) int64, the prompt and its continuation.
        prompt: How many of them are the prompt.
        logits: (n, vocab) float32, one row per token.
    """

    tokens: NDArray[np.int64]
    prompt: int
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reference:
    """All texts, the longest first, and the scale of their logits.

    Attributes:
        texts: At least two; prompts of different lengths.
        scale: The largest absolute logit.
        windows: Per layer, how many tokens the model's attention sees; None = all of them.
        window: What every window was cut to for these texts; None where they are the model's own.
        notes: What a reader of the record should know of how it came about.
    """

    texts: tuple[ReferenceText, ...]
    scale: float
    windows: tuple[int | None, ...]
    window: int | None
    notes: tuple[str, ...]


def load_module(folder: Path, config: Any = None) -> Any:
    """Load transformers' module in float32 with eager attention; None = the folder's own config."""
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    return module.eval()


def make_reference(decoder: Decoder, *, threads: int | None = None) -> Reference:
    """Load the torch module and ask it about each text, with ``threads`` threads of torch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        return _make_reference(decoder)
    finally:
        torch.set_num_threads(before)


def _make_reference(decoder: Decoder) -> Reference:
    config = deepcopy(decoder.config)
    longest = max((window for window in decoder.windows if window is not None), default=0)
    is_cut = longest > WINDOW
    if is_cut:
        config.sliding_window = WINDOW
    module = load_module(decoder.folder, config)
    rng = np.random.default_rng(_SEED)
    first = min(_PROMPT, decoder.max_length - GENERATED)
    texts = [_continue(module, rng.integers(0, decoder.vocab_size, first))]
    for length in _OTHER_PROMPTS:
        prompt = min(length, first)
        tokens = rng.integers(0, decoder.vocab_size, prompt + GENERATED)
        texts.append(_read(module, tokens, prompt))
    return Reference(
        texts=tuple(texts),
        scale=max(float(np.abs(text.logits).max()) for text in texts),
        windows=decoder.windows,
        window=WINDOW if is_cut else None,
        notes=(f"the sliding window of {longest} tokens was verified at {WINDOW}",) * is_cut,
    )


def _read(module: Any, tokens: NDArray[np.int64], prompt: int) -> ReferenceText:
    """Ask about a given text in one pass."""
    import torch

    with torch.inference_mode():
        logits = module(torch.from_numpy(tokens)[None], use_cache=False).logits[0]
    return ReferenceText(tokens=tokens, prompt=prompt, logits=logits.numpy().copy())


def _continue(module: Any, prompt: NDArray[np.int64]) -> ReferenceText:
    """Let the module continue a prompt greedily."""
    import torch

    tokens, logits = prompt, []
    cache: Any = None
    pending = prompt
    with torch.inference_mode():
        for _ in range(GENERATED + 1):
            output = module(torch.from_numpy(pending)[None], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits[0].numpy().copy())
            if len(tokens) == len(prompt) + GENERATED:
                break
            pending = logits[-1][-1:].argmax(axis=-1).astype(np.int64)
            tokens = np.concatenate([tokens, pending])
    return ReferenceText(tokens=tokens, prompt=len(prompt), logits=np.concatenate(logits))
