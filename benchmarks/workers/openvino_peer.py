"""The peer OpenVINO GenAI: its pipeline with continuous batching, in an environment of its own.

Owns how its model is made by optimum-intel, and how requests are followed token by token. Knows
nothing of ours.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.workers.protocol import answer_requests
from benchmarks.workers.schedule import Stream, answer_of, wait_until

_CACHE_GIB = 4
_GROUP = 32  # weights that share a scale


class OpenVinoPeer:
    """Makes a model of a folder, or loads what was made before."""

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._exported = ""
        self._count = 0

    def load(self, model: str, exported: str, threads: int, bits: int) -> dict[str, Any]:
        """Load ``exported`` if that folder is there; else make it of ``model``."""
        import openvino_genai as genai

        self._exported = exported
        if not Path(exported, "openvino_model.xml").exists():
            _export(model, exported, bits)
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = _CACHE_GIB
        scheduler.enable_prefix_caching = False
        self._pipeline = genai.ContinuousBatchingPipeline(
            exported,
            scheduler_config=scheduler,
            device="CPU",
            properties={"INFERENCE_NUM_THREADS": threads},
        )
        names = ("openvino-genai", "openvino", "optimum-intel", "nncf", "transformers")
        return {"versions": {name: version(name) for name in names}}

    def generate(
        self, prompts: list[list[int]], new_tokens: int, *, at_s: list[float] | None = None
    ) -> dict[str, Any]:
        """Continue prompts at the same time, or each from its moment on."""
        import numpy as np
        import openvino
        import openvino_genai as genai

        config = genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        waiting = sorted(zip(at_s or [0.0] * len(prompts), range(len(prompts)), strict=True))
        streams = [Stream() for _ in prompts]
        running: dict[int, Any] = {}
        begun_s = time.monotonic()
        while waiting or running:
            now_s = time.monotonic() - begun_s
            while waiting and waiting[0][0] <= now_s:
                _, index = waiting.pop(0)
                ids = openvino.Tensor(np.array([prompts[index]], np.int64))
                self._count += 1
                running[index] = self._pipeline.add_request(self._count, ids, config)
            if not running:
                wait_until(begun_s + waiting[0][0])
                continue
            self._pipeline.step()
            now_s = time.monotonic() - begun_s
            for index, handle in [*running.items()]:
                while handle.can_read():
                    for output in handle.read().values():
                        streams[index].add(output.generated_ids, now_s)
                if len(streams[index].tokens) >= new_tokens:
                    del running[index]
        return answer_of(streams, begun_s, new_tokens)

    def scores(self, windows: list[list[int]], into: str) -> dict[str, Any]:
        """Write the logits (windows, tokens, vocabulary) of texts, float32."""
        import numpy as np
        import openvino

        compiled = openvino.Core().compile_model(f"{self._exported}/openvino_model.xml", "CPU")
        found = []
        for window in windows:
            request = compiled.create_infer_request()
            ids = np.array([window], np.int64)
            inputs = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "position_ids": np.arange(ids.shape[1])[None],
                "beam_idx": np.zeros(1, np.int32),
            }
            found.append(np.array(request.infer(inputs)["logits"], np.float32)[0])
        np.save(into, np.stack(found))
        return {}


def _export(model: str, exported: str, bits: int) -> None:
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoTokenizer

    four = {"group_size": _GROUP, "ratio": 1.0} if bits == 4 else {}
    quantization = OVWeightQuantizationConfig(bits=bits, sym=False, **four)
    made = OVModelForCausalLM.from_pretrained(
        model, export=True, quantization_config=quantization, compile=False
    )
    made.save_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(exported)
    converted = convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, part in zip(("tokenizer", "detokenizer"), converted, strict=True):
        openvino.save_model(part, f"{exported}/openvino_{name}.xml")


if __name__ == "__main__":
    peer = OpenVinoPeer()
    answer_requests({"load": peer.load, "generate": peer.generate, "scores": peer.scores})
