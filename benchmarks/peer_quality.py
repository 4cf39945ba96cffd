"""How far each recipe and rung is from float32, on the demo model and the same text for everybody.

Speed is measured on random weights, which say nothing of quality; the demo model is trained. Owns
the text and the arithmetic. Knows nothing of how contenders compute.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from benchmarks.contenders import ROOT, Contender
from benchmarks.roster import Roster

MODEL = ROOT / "demo" / "model"
_TEXTS = ROOT / "demo" / "heldout.jsonl"
_WINDOWS = 8
_TOKENS = 96
_FIRST = 8  # positions before it have too little to go by


def windows() -> list[list[int]]:
    """Token ids of the beginnings of held-out texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    found: list[list[int]] = []
    for line in _TEXTS.read_text(encoding="utf-8").splitlines():
        ids = tokenizer.encode(json.loads(line)["text"]).ids
        if len(ids) >= _TOKENS:
            found.append(ids[:_TOKENS])
        if len(found) == _WINDOWS:
            break
    return found


def divergences(
    roster: Roster, reference: str, names: Iterable[str], folder: Path
) -> dict[str, float]:
    """KL(float32 || other) in nats, the mean over all positions, of those that are named.

    Args:
        roster: Contenders with the demo model; none is running.
        reference: Who computes in float32.
        names: Whom to compare with it.
        folder: For what they give.
    """
    texts = windows()
    by_name = {contender.name: contender for contender in roster.active()}
    if reference not in by_name:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _scores(roster, by_name[reference], texts, folder)
    found = {}
    for name in names:
        if name in by_name and wanted is not None:
            given = _scores(roster, by_name[name], texts, folder)
            if given is not None:
                found[name] = mean_kl(wanted, given)
    return found


def mean_kl(wanted: NDArray[np.float32], given: NDArray[np.float32]) -> float:
    """Of logits or log-probabilities (windows, tokens, vocabulary), in nats."""
    p = log_softmax(wanted[:, _FIRST:].astype(np.float64), axis=-1)
    q = log_softmax(given[:, _FIRST:].astype(np.float64), axis=-1)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def _scores(
    roster: Roster, contender: Contender, texts: list[list[int]], folder: Path
) -> NDArray[np.float32] | None:
    into = folder / f"{contender.name}.npy"
    into.unlink(missing_ok=True)
    with roster.trying(contender, "quality"):
        contender.start()
        contender.scores(texts, into)
        contender.end()
    if not into.exists():
        return None
    scores: NDArray[np.float32] = np.load(into)
    into.unlink()
    return scores
