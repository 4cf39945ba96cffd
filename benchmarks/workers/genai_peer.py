"""The peer onnxruntime-genai: int4 by its own model builder, in an environment of its own.

It batches prompts of one length that begin and end together. Knows nothing of ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.workers.protocol import answer_requests
from benchmarks.workers.schedule import Stream, answer_of

_BLOCK = 32


class GenaiPeer:
    """Builds a model of a folder, or loads what was built before."""

    def __init__(self) -> None:
        self._model: Any = None
        self._exported = ""

    def load(self, model: str, exported: str, threads: int) -> dict[str, Any]:
        """Load ``exported`` if that folder is there; else build it of ``model``."""
        import onnxruntime_genai as genai

        self._exported = exported
        if not Path(exported, "genai_config.json").exists():
            subprocess.run(
                [
                    *(sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", model),
                    *("-o", exported, "-p", "int4", "-e", "cpu", "--extra_options"),
                    *(f"int4_block_size={_BLOCK}", "int4_accuracy_level=4"),
                ],
                check=True,
                stdout=sys.stderr,
            )
        config = genai.Config(exported)
        session = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": session}}))
        self._model = genai.Model(config)
        names = ("onnxruntime-genai", "onnxruntime", "transformers", "torch")
        return {"versions": {name: version(name) for name in names}}

    def generate(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Continue prompts of one length as one batch."""
        import numpy as np
        import onnxruntime_genai as genai

        length = len(prompts[0]) + new_tokens
        streams = [Stream() for _ in prompts]
        begun_s = time.monotonic()
        parameters = genai.GeneratorParams(self._model)
        # A text that ends is padded; as long as it must be, it does not end.
        parameters.set_search_options(
            do_sample=False, batch_size=len(prompts), max_length=length, min_length=length
        )
        generator = genai.Generator(self._model, parameters)
        generator.append_tokens(np.array(prompts, np.int32))
        for _ in range(new_tokens):
            generator.generate_next_token()
            now_s = time.monotonic() - begun_s
            for stream, token in zip(streams, generator.get_next_tokens(), strict=True):
                stream.add([token], now_s)
        return answer_of(streams, begun_s, new_tokens)

    def scores(self, windows: list[list[int]], into: str) -> dict[str, Any]:
        """Write the logits (windows, tokens, vocabulary) of texts, float32: of the same graph."""
        import numpy as np
        import onnxruntime

        session = onnxruntime.InferenceSession(
            f"{self._exported}/model.onnx", providers=["CPUExecutionProvider"]
        )
        ids = np.array(windows, np.int64)
        described = json.loads(Path(self._exported, "genai_config.json").read_text("utf-8"))
        size = described["model"]["decoder"]["head_size"]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for each in session.get_inputs():
            if each.name == "position_ids":
                inputs[each.name] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
            elif each.name not in inputs:
                shape = (len(ids), each.shape[1], 0, size)
                inputs[each.name] = np.zeros(shape, np.float32)
        np.save(into, session.run(["logits"], inputs)[0].astype(np.float32))
        return {}


if __name__ == "__main__":
    peer = GenaiPeer()
    answer_requests({"load": peer.load, "generate": peer.generate, "scores": peer.scores})
