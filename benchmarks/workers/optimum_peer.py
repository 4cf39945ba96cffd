"""The peer (b): optimum's ``ORTModelForCausalLM``, float32, in an environment of its own."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.workers.causal import Causal
from benchmarks.workers.protocol import answer_requests


class OptimumPeer:
    """Exports a folder with optimum, or loads what was exported before."""

    def __init__(self) -> None:
        self._causal: Causal | None = None

    def load(self, model: str, exported: str, threads: int) -> dict[str, Any]:
        """Load ``exported`` if that folder is there; else export ``model`` and keep it there."""
        import onnxruntime as ort
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM

        torch.set_num_threads(threads)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        cold = not Path(exported).is_dir()
        loaded = ORTModelForCausalLM.from_pretrained(
            model if cold else exported,
            export=cold,
            use_cache=True,
            provider="CPUExecutionProvider",
            session_options=options,
        )
        if cold:
            loaded.save_pretrained(exported)
        self._causal = Causal(loaded)
        names = ("optimum-onnx", "optimum", "transformers", "onnxruntime", "torch")
        return {"versions": {name: version(name) for name in names}}

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
    peer = OptimumPeer()
    answer_requests({"load": peer.load, "generate": peer.generate, "scores": peer.scores})
