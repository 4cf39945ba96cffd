"""How far a variant is from the original model: KL divergence, agreement, perplexity.

``python -m artifacts.measure`` compares two artifacts of a store on a text. Owns the figures'
definitions; needs no torch. Knows nothing of how a variant was made.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts import texts
from artifacts.errors import ArtifactError, TextError
from artifacts.isa import isa_class
from artifacts.layout import default_root
from artifacts.manifest import GraphSpec, Quality
from artifacts.reference import (
    FIRST_POSITION,
    USER_WINDOW,
    Reference,
    Scorer,
    choose_windows,
    in_chunks,
    load_reference,
    log_softmax,
    make_reference,
)
from artifacts.session import DecoderSession, Row
from artifacts.session_factory import open_session
from artifacts.store import Store

_CHUNK = 64  # positions


class SessionScorer:
    """Logits of a loaded artifact, one document at a time."""

    def __init__(self, session: DecoderSession) -> None:
        self._session = session

    def logits(self, tokens: NDArray[np.int64], first: int) -> NDArray[np.float32]:
        """Run one document through an empty slot."""
        row = Row(slot=0, start=0, tokens=tokens, logits=tokens.size - first)
        return self._session.step([row]).logits


def open_scorer(model: Path, graph: GraphSpec, *, threads: int | None) -> SessionScorer:
    """Load a model just large enough for measuring."""
    length = min(USER_WINDOW, graph.max_length)
    return SessionScorer(open_session(model, graph, slots=1, max_length=length, threads=threads))


def measure(reference: Reference, variant: Scorer, *, is_user_text: bool) -> Quality:
    """Compare a variant with the original, position by position.

    KL(original || variant) is taken in nats over the vocabulary that both have, each side
    normalised over it. Perplexity is only told of a user's text: on text that the original wrote
    itself it would be no more than the original's own entropy.
    """
    divergence: list[NDArray[np.float32]] = []
    agreed: list[NDArray[np.bool_]] = []
    losses: list[NDArray[np.float32]] = []
    original_losses: list[NDArray[np.float32]] = []
    for document, stored in reference.parts():
        logits = variant.logits(document[:-1], FIRST_POSITION)
        targets = document[FIRST_POSITION + 1 :]
        shared = min(stored.shape[1], logits.shape[1])
        for part in in_chunks(stored.shape[0], _CHUNK):
            original = log_softmax(stored[part, :shared])
            other = log_softmax(logits[part, :shared])
            divergence.append((np.exp(original) * (original - other)).sum(axis=-1))
            # Stored in 16 bits, the original's likeliest token may tie with the next.
            choice = other.argmax(axis=-1)[:, None]
            likeliest = original.max(axis=-1, keepdims=True)
            agreed.append((np.take_along_axis(original, choice, axis=-1) == likeliest)[:, 0])
            wanted = targets[part, None]
            losses.append(-np.take_along_axis(other, wanted, axis=-1)[:, 0])
            original_losses.append(-np.take_along_axis(original, wanted, axis=-1)[:, 0])
    kl = np.maximum(np.concatenate(divergence), 0.0)
    return Quality(
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99)),
        top1_agreement=float(np.concatenate(agreed).mean()),
        perplexity=_perplexity(losses) if is_user_text else None,
        original_perplexity=_perplexity(original_losses) if is_user_text else None,
        documents=len(reference.documents),
        positions=int(kl.size),
        isa=isa_class(),
    )


def compare(
    store: Store, artifact: str, original: str, text: str, *, tokens: int, threads: int | None
) -> Quality:
    """Measure one stored artifact against another on a file of texts.

    Raises:
        ArtifactError: An artifact or the text cannot be used.
    """
    from artifacts.tokenizer import Tokenizer

    stored = store.open(original)
    tokenizer = Tokenizer.load(stored.path("tokenizer.json"))
    graph = stored.manifest.graph
    documents = choose_windows(
        [tokenizer.encode(document) for document in texts.read(text)],
        window=min(USER_WINDOW, graph.max_length),
        tokens=tokens,
        vocabulary=graph.vocab_size,
    )
    if not documents:
        raise TextError(f"{text!r} has no document that is long enough to measure on.")
    with tempfile.TemporaryDirectory() as scratch:
        scorer = open_scorer(stored.path("model.onnx"), graph, threads=threads)
        make_reference(Path(scratch), documents, scorer, vocabulary=graph.vocab_size)
        del scorer
        variant = store.open(artifact)
        return measure(
            load_reference(Path(scratch)),
            open_scorer(variant.path("model.onnx"), variant.manifest.graph, threads=threads),
            is_user_text=True,
        )


def main(arguments: Sequence[str]) -> int:
    """Measure and print the figures as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m artifacts.measure", description=__doc__)
    parser.add_argument("--store", type=Path, default=default_root(os.environ))
    parser.add_argument("--artifact", required=True, help="digest of the variant")
    parser.add_argument("--reference", required=True, help="digest of the original's artifact")
    parser.add_argument("--text", required=True, help=".jsonl with a text field, or .txt")
    parser.add_argument("--tokens", type=int, default=8192, help="to compare, at most")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args(arguments)
    try:
        quality = compare(
            Store(options.store),
            options.artifact,
            options.reference,
            options.text,
            tokens=options.tokens,
            threads=options.threads,
        )
    except ArtifactError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return 1
    sys.stdout.write(quality.model_dump_json(indent=1) + "\n")
    return 0


def _perplexity(losses: Sequence[NDArray[np.float32]]) -> float:
    return float(np.exp(np.concatenate(losses).mean(dtype=np.float64)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
