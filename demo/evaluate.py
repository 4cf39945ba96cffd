"""Held-out perplexity of a model folder.

Owns the measure: mean loss over whole held-out files, in windows of the model's context. Knows
nothing about how the model was trained or will be served.

    python -m demo.evaluate [--model FOLDER] [--excerpts]
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo import corpus, path

ROWS = 4


def measure(folder: Path, texts: list[str], length: int) -> dict[str, Any]:
    """Score `texts`, each as its own document between end-of-text tokens, in float32.

    Every token after a document's opening one is scored once, in consecutive windows of at most
    `length` tokens that share one token with their neighbour. Returns the number of tokens and
    UTF-8 bytes, the loss in nats per token, the perplexity per token, and bits per byte.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    bound = tokenizer.eos_token_id
    windows = []
    for text in texts:
        ids = [bound, *tokenizer.encode(text, add_special_tokens=False), bound]
        windows += [ids[i : i + length + 1] for i in range(0, len(ids) - 1, length)]
    windows.sort(key=len)
    total, tokens = 0.0, 0
    for first in range(0, len(windows), ROWS):
        rows = [torch.tensor(window) for window in windows[first : first + ROWS]]
        # Padding is on the right, where causal attention keeps it out of sight; -100 is unscored.
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        targets = batch[:, 1:].flatten()
        with torch.inference_mode():
            logits = model(input_ids=batch[:, :-1].clamp(min=0), use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")
        total += float(loss)
        tokens += int((targets != -100).sum())
    size = sum(len(text.encode()) for text in texts)
    return {
        "documents": len(texts),
        "tokens": tokens,
        "bytes": size,
        "loss": round(total / tokens, 4),
        "perplexity": round(math.exp(total / tokens), 4),
        "bits_per_byte": round(total / size / math.log(2), 4),
    }


def main() -> None:
    """Print one JSON object: all held-out files, library files only, or the excerpts."""
    parser = argparse.ArgumentParser(description="Held-out perplexity of a model folder.")
    parser.add_argument("--model", type=Path, default=path(), help="the model's folder")
    parser.add_argument("--length", type=int, default=1024, help="window length in tokens")
    parser.add_argument(
        "--excerpts",
        action="store_true",
        help="score heldout.jsonl instead of the whole held-out files",
    )
    options = parser.parse_args()
    if options.excerpts:
        lines = (path().parent / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
        groups = {"excerpts": [str(json.loads(line)["text"]) for line in lines]}
    else:
        pool = corpus.heldout_documents()
        groups = {
            "library": [document.text for document in pool if not document.is_test],
            "all": [document.text for document in pool],
        }
    report = {name: measure(options.model, texts, options.length) for name, texts in groups.items()}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
