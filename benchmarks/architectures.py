"""Exports one small random model per architecture and tabulates how each is served.

``python -m benchmarks.architectures [NAME ...]`` prints the table of ``docs/architectures.md``:
which exporter and form each architecture gets, the largest logit error of any schedule against
transformers at which logit scale, and how many greedy tokens agree out of how many, alone and in a
mixed batch. With ``--optimum-python PATH`` Optimum is tried as well.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts.session import Row
from artifacts.session_factory import open_session
from benchmarks import zoo
from optimizers.errors import ExportError
from optimizers.export import export
from optimizers.export.reference import load_module

if TYPE_CHECKING:
    from artifacts.session import DecoderSession
    from optimizers.export import Exported

NEW_TOKENS = 64
PROMPTS = (40, 1, 23, 9)
OTHERS = ("llama_mlp_bias", "mamba", "rwkv")
HEADER = (
    "| model | architecture | exporter | form | max error | scale | tokens | tried before |\n"
    "|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser(description="How each architecture is exported and served.")
    parser.add_argument("names", nargs="*", default=None)
    parser.add_argument("--optimum-python", default=None)
    arguments = parser.parse_args()
    names = arguments.names or [*zoo.TIER_1, *zoo.TIER_2, *zoo.VARIANTS, *OTHERS]
    print(HEADER)
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            print(_line(name, Path(work), arguments.optimum_python), flush=True)


def _line(name: str, work: Path, optimum_python: str | None) -> str:
    folder = zoo.write_model(work / "model", name)
    architecture = zoo.make_config(name).architectures or [type(zoo.make_model(name)).__name__]
    try:
        exported = export(
            folder, work / "out", progress=lambda *_: None, optimum_python=optimum_python
        )
    except ExportError as error:
        return f"| {name} | {architecture[0]} | refused | | | | | {_cell(str(error))} |"
    record = exported.record
    equal, total = _tokens(folder, exported)
    tried = "; ".join(_cell(reason) for reason in record.tried)
    return (
        f"| {name} | {architecture[0]} | {record.exporter} | {exported.graph.form} "
        f"| {record.max_logit_error:.1e} | {record.logit_scale:.1f} | {equal}/{total} | {tried} |"
    )


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:120]


def _tokens(folder: Path, exported: Exported) -> tuple[int, int]:
    """Count greedy tokens equal to those of ``generate``: alone, then all prompts in one batch."""
    import torch

    rng = np.random.default_rng(7)
    vocabulary = exported.graph.vocab_size
    longest = exported.graph.max_length - NEW_TOKENS
    prompts = [
        rng.integers(0, vocabulary, min(n, max(longest, 1))).astype(np.int64) for n in PROMPTS
    ]
    new_tokens = min(NEW_TOKENS, exported.graph.max_length - max(map(len, prompts)))
    module = load_module(folder)
    module.generation_config.eos_token_id = None
    expected = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt)[None]
        mask = torch.ones_like(ids)
        text = module.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)
        expected += text[0, len(prompt) :].tolist()
    session = open_session(
        exported.model,
        exported.graph,
        slots=len(prompts),
        max_length=max(map(len, prompts)) + new_tokens,
    )
    alone: list[int] = []
    for prompt in prompts:
        alone += _greedy(session, [prompt], new_tokens)
        session.release(0)
    mixed = _greedy(session, prompts, new_tokens)
    equal = sum(a == b for a, b in zip(alone + mixed, expected * 2, strict=True))
    return equal, 2 * len(expected)


def _greedy(session: DecoderSession, prompts: list[Any], new_tokens: int) -> list[int]:
    texts: list[list[int]] = [[] for _ in prompts]
    pending = list(prompts)
    done = [0] * len(prompts)
    for _ in range(new_tokens):
        rows = [Row(slot, done[slot], tokens, 1) for slot, tokens in enumerate(pending)]
        for slot, line in enumerate(session.step(rows).logits):
            done[slot] += len(pending[slot])
            texts[slot].append(int(line.argmax()))
            pending[slot] = np.array(texts[slot][-1:], np.int64)
    return [token for text in texts for token in text]


if __name__ == "__main__":
    main()
