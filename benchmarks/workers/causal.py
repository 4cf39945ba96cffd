"""Generation with the ``generate`` method that transformers and optimum share.

Owns greedy decoding of an exact number of tokens. Knows nothing of how the model was loaded.
Imported by workers in environments that hold neither the server nor its libraries.
"""

from __future__ import annotations

import time
from typing import Any


class Causal:
    """A loaded model that is asked for tokens."""

    def __init__(self, model: Any) -> None:
        self._model = model
        # Every contender generates exactly as many tokens as asked for.
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0

    def generate(
        self, prompts: list[list[int]], new_tokens: int, *, batched: bool = False
    ) -> dict[str, Any]:
        """Continue prompts of one length greedily, one after another or as one batch.

        Returns:
            ``seconds`` from the first prompt to the last token, and the ``tokens`` of each.
        """
        groups = [prompts] if batched else [[prompt] for prompt in prompts]
        begun_s = time.perf_counter()
        tokens = [row for group in groups for row in self._continue(group, new_tokens)]
        return {"seconds": time.perf_counter() - begun_s, "tokens": tokens}

    def scores(self, windows: list[list[int]], into: str) -> dict[str, Any]:
        """Write the logits (windows, tokens, vocabulary) of texts, float32."""
        import numpy as np
        import torch

        ids = torch.tensor(windows)
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        np.save(into, logits.float().numpy())
        return {}

    def _continue(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        import torch

        ids = torch.tensor(prompts)  # (rows, length)
        output = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
        )
        generated: list[list[int]] = output[:, ids.shape[1] :].tolist()
        if any(len(row) != new_tokens for row in generated):
            counts = sorted({len(row) for row in generated})
            raise RuntimeError(f"generate gave {counts} tokens instead of {new_tokens}.")
        return generated
