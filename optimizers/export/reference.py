"""The oracle: what transformers' torch module says about a few texts, in float32.

Owns the choice of texts: one of random tokens, longer than any sliding window as far as that is
affordable, with the module's greedy continuation; and shorter ones, its neighbours in a ragged
batch. Knows nothing of ONNX or of the graph under test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from optimizers.export.decoder import Decoder

GENERATED = 16  # tokens of each text that are fed one at a time
BEYOND_WINDOW = 24  # prompt tokens past the longest window
_SHORT = 40  # prompt of a model without windows
_OTHER_PROMPTS = (1, 23)
_KEPT = 64  # positions at the end of a text whose logits are compared
_LOGITS = 1 << 28  # floats of one text's logits while they are computed: 1 GiB
_OPERATIONS = 2e12  # of one pass over the longest text: some 20 s on two cores
_SEED = 20


@dataclass(frozen=True, slots=True)
class ReferenceText:
    """One text and what the module says at each of its positions.

    Attributes:
        tokens: (n,) int64, the prompt and its continuation.
        prompt: How many of them are the prompt.
        logits: (k, vocab) float32 at the last k positions; they depend on all before.
    """

    tokens: NDArray[np.int64]
    prompt: int
    logits: NDArray[np.float32]

    @property
    def first(self) -> int:
        """The first position whose logits are known."""
        return len(self.tokens) - len(self.logits)


@dataclass(frozen=True, slots=True)
class Reference:
    """All texts, the longest first, and the scale of their logits.

    Attributes:
        texts: At least two; prompts of different lengths.
        scale: The largest absolute logit.
        notes: What was left out to stay affordable.
    """

    texts: tuple[ReferenceText, ...]
    scale: float
    notes: tuple[str, ...]


def load_module(folder: Path) -> Any:
    """Load transformers' module in float32 with eager attention."""
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(
        folder,
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
    module = load_module(decoder.folder)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    longest, notes = _longest_prompt(decoder, parameters)
    rng = np.random.default_rng(_SEED)
    texts = [_continue(module, rng.integers(0, decoder.vocab_size, longest))]
    for length in _OTHER_PROMPTS:
        prompt = min(length, longest)
        tokens = rng.integers(0, decoder.vocab_size, prompt + GENERATED)
        texts.append(_read(module, tokens, prompt))
    scale = max(float(np.abs(text.logits).max()) for text in texts)
    return Reference(texts=tuple(texts), scale=scale, notes=notes)


def _longest_prompt(decoder: Decoder, parameters: int) -> tuple[int, tuple[str, ...]]:
    windows = [window for window in decoder.windows if window is not None]
    wanted = max(windows) + BEYOND_WINDOW if windows else _SHORT
    affordable = min(int(_OPERATIONS / (2 * parameters)), _LOGITS // decoder.vocab_size)
    room = decoder.max_length - GENERATED
    length = min(wanted, max(affordable, _SHORT), room)
    if windows and length <= max(windows) < decoder.max_length:
        return length, (
            f"the sliding window of {max(windows)} tokens was not crossed: verified on {length}",
        )
    return length, ()


def _read(module: Any, tokens: NDArray[np.int64], prompt: int) -> ReferenceText:
    """Ask about a given text in one pass."""
    import torch

    with torch.inference_mode():
        logits = module(torch.from_numpy(tokens)[None], use_cache=False).logits[0]
    return ReferenceText(tokens=tokens, prompt=prompt, logits=logits[-_KEPT:].numpy().copy())


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
            logits.append(output.logits[0, -_KEPT:].numpy().copy())
            if len(tokens) == len(prompt) + GENERATED:
                break
            pending = logits[-1][-1:].argmax(axis=-1).astype(np.int64)
            tokens = np.concatenate([tokens, pending])
    return ReferenceText(tokens=tokens, prompt=len(prompt), logits=np.concatenate(logits))
