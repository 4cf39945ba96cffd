"""Train the demo model on the standard library's source, on a processor, from one fixed seed.

Owns the model's shape, the schedule and the checkpoints of a run. Knows nothing about how text is
chosen (`corpus`), packed (`batches`) or measured (`evaluate`), nor about the files a serving
engine reads (`export`).

    python -m demo.train --work DIR            # start, or go on after the last checkpoint
    python -m demo.export --work DIR           # write the model folder from the last checkpoint
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from demo import batches, corpus, tokenizer
from demo.muon import Muon

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 20
CONTEXT = 1024
BATCH_TOKENS = 6144
STEPS = 570
SHORT_LENGTH, SHORT_STEPS = 256, 525
MUON_RATE = 0.02
ADAM_RATE = 0.003
# Steps and the share of the peak rates there, with straight lines between: up, level, down. The run
# was stopped a little before zero, when its time was over.
RATES = ((-1, 0.0), (59, 1.0), (450, 1.0), (525, 0.655), (585, 0.0))
CHECKPOINT_STEPS = 25


def configuration() -> LlamaConfig:
    """Return the model's shape; every inner dimension of a product is a multiple of 128."""
    return LlamaConfig(
        vocab_size=tokenizer.VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=corpus.SPECIAL_TOKENS.index(corpus.EOT),
        eos_token_id=corpus.SPECIAL_TOKENS.index(corpus.EOT),
        pad_token_id=corpus.SPECIAL_TOKENS.index(corpus.PAD),
    )


def build() -> LlamaForCausalLM:
    """Return a new model whose blocks start as the identity, which steadies the first steps."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(configuration())
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices and AdamW for the embedding and the norms."""
    hidden = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embedding = [model.model.embed_tokens.weight]
    return [
        Muon(hidden, lr=MUON_RATE, weight_decay=0.01),
        torch.optim.AdamW(embedding + norms, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(step: int) -> float:
    """Return the share of the peak learning rates that step `step` uses."""
    steps, shares = zip(*RATES, strict=True)
    return float(np.interp(step, steps, shares))


def load_tokenizer(work: Path) -> Tokenizer:
    """Return the run's tokenizer, learnt on the first call and kept in `work`."""
    file = work / "tokenizer.json"
    if not file.exists():
        tokenizer.learn(d.text for d in corpus.train_documents()).save(str(file))
    return Tokenizer.from_file(str(file))


@dataclass
class Run:
    """A run's state: what a checkpoint holds, and nothing else."""

    model: LlamaForCausalLM
    optims: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0

    def resume(self, file: Path) -> None:
        """Take over the state in `file`."""
        saved: dict[str, Any] = torch.load(file, weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optim, state in zip(self.optims, saved["optimizers"], strict=True):
            optim.load_state_dict(state)
        self.step, self.seconds = saved["step"], saved["seconds"]

    def save(self, file: Path) -> None:
        """Write the state to `file`, in one step, so that a kill leaves the old or the new."""
        draft = file.with_suffix(".draft")
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optim.state_dict() for optim in self.optims],
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, draft)
        draft.replace(file)

    def update(self) -> None:
        """Apply the gradients at this step's rates, then forget them."""
        for optim, peak in zip(self.optims, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optim.param_groups:
                group["lr"] = peak * rate(self.step)
            optim.step()
            optim.zero_grad()
        self.step += 1


def schedule(pool: dict[str, list[batches.Ids]], done: int) -> Iterator[torch.Tensor]:
    """Yield the batches after the first `done`, as [rows, length + 1] ids: short, then long."""
    for length, first, last in ((SHORT_LENGTH, 0, SHORT_STEPS), (CONTEXT, SHORT_STEPS, STEPS)):
        start = max(done, first)
        rows = BATCH_TOKENS // length
        skip = start - first
        endless = batches.batches(pool, 0, length=length, rows=rows, seed=SEED, skip=skip)
        for _, ids in zip(range(start, last), endless, strict=False):
            yield torch.from_numpy(ids.astype("int64"))


def train(work: Path) -> None:
    """Run the schedule to its end, checkpointing into `work` and resuming from there."""
    work.mkdir(parents=True, exist_ok=True)
    model = build()
    run = Run(model, optimizers(model))
    if (work / "last.pt").exists():
        run.resume(work / "last.pt")
    pool = batches.pools(load_tokenizer(work))
    for kind, group in pool.items():
        print(f"{kind}: {len(group)} documents, {sum(map(len, group))} tokens", flush=True)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    compiled = torch.compile(loss_of, dynamic=False)
    began = time.monotonic() - run.seconds
    recent: list[float] = []
    for ids in schedule(pool, run.step):
        loss = compiled(ids)
        loss.backward()
        run.update()
        run.seconds = time.monotonic() - began
        recent.append(loss.item())
        if run.step % 10 == 0:
            mean = sum(recent) / len(recent)
            recent.clear()
            print(f"{run.step}/{STEPS} loss {mean:.4f} {run.seconds:.0f} s", flush=True)
        if run.step % CHECKPOINT_STEPS == 0 or run.step == STEPS:
            run.save(work / "last.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--work", type=Path, required=True, help="folder of the run's checkpoints")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.work)
