"""The peer (a): transformers' ``generate`` on the torch module in float32."""

from __future__ import annotations

from typing import Any

from benchmarks.workers.causal import Causal
from benchmarks.workers.protocol import answer_requests


class TransformersPeer:
    """Loads a folder with transformers."""

    def __init__(self) -> None:
        self._causal: Causal | None = None

    def load(self, model: str, threads: int) -> dict[str, Any]:
        """Load the weights of a folder."""
        import torch
        import transformers

        torch.set_num_threads(threads)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._causal = Causal(loaded.eval())
        return {"versions": {"transformers": transformers.__version__, "torch": torch.__version__}}

    def generate(self, **arguments: Any) -> dict[str, Any]:
        """See ``Causal.generate``."""
        if self._causal is None:
            raise RuntimeError("load comes first.")
        return self._causal.generate(**arguments)

    def scores(self, windows: list[list[int]], into: str) -> dict[str, Any]:
        """See ``Causal.scores``."""
        if self._causal is None:
            raise RuntimeError("load comes first.")
        return self._causal.scores(windows, into)


if __name__ == "__main__":
    peer = TransformersPeer()
    answer_requests({"load": peer.load, "generate": peer.generate, "scores": peer.scores})
