"""How far a variant is from the original model: KL divergence, agreement, perplexity.

``python -m artifacts.measure`` compares two artifacts of a store on a text. Owns the figures'
definitions; needs no torch. Knows nothing of how a variant was made.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from artifacts import texts
from artifacts.errors import ArtifactError, TextError
from artifacts.isa import isa_class
from artifacts.layout import default_root
from artifacts.manifest import DocumentQuality, GraphSpec, Quality
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
        forms = self._session.forms
        if forms is None or forms.choice != "adaptive":
            row = Row(slot=0, start=0, tokens=tokens, logits=tokens.size - first)
            return self._session.step([row]).logits
        return np.concatenate([*self._mixed(tokens, first, forms.rows)])

    def _mixed(
        self, tokens: NDArray[np.int64], first: int, rows: int
    ) -> Iterator[NDArray[np.float32]]:
        """Which form computes a token depends on others' requests: here both do, in turns."""
        start, count = 0, rows
        while start < tokens.size:
            part = tokens[start : start + count]
            wanted = min(max(start + part.size - first, 0), part.size)
            row = Row(slot=0, start=start, tokens=part, logits=wanted)
            yield self._session.step([row]).logits.copy()
            start += part.size
            count = max(rows - 1, 1) if count == rows else rows


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
    documents = [
        _Document.of(stored, variant.logits(document[:-1], FIRST_POSITION), targets=document[1:])
        for document, stored in reference.parts()
    ]
    kl = np.concatenate([document.kl for document in documents])
    agreed = np.concatenate([document.agreed for document in documents])
    return Quality(
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99)),
        top1_agreement=float(agreed.mean()),
        perplexity=_perplexity([x.losses for x in documents]) if is_user_text else None,
        original_perplexity=_perplexity([x.original_losses for x in documents])
        if is_user_text
        else None,
        documents=len(documents),
        positions=int(kl.size),
        isa=isa_class(),
        by_document=tuple(document.quality(is_user_text=is_user_text) for document in documents),
    )


@dataclass(frozen=True, slots=True)
class _Document:
    """Figures of one document, one per position that is compared."""

    kl: NDArray[np.float32]
    agreed: NDArray[np.bool_]
    losses: NDArray[np.float32]
    original_losses: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        stored: NDArray[np.float16],
        logits: NDArray[np.float32],
        *,
        targets: NDArray[np.int64],
    ) -> Self:
        """Compare the original's log-probabilities (positions, vocab) with a variant's logits.

        ``targets`` are the tokens that came, from the document's second on.
        """
        kl: list[NDArray[np.float32]] = []
        agreed: list[NDArray[np.bool_]] = []
        losses: list[NDArray[np.float32]] = []
        original_losses: list[NDArray[np.float32]] = []
        shared = min(stored.shape[1], logits.shape[1])
        for part in in_chunks(stored.shape[0], _CHUNK):
            original = log_softmax(stored[part, :shared])
            other = log_softmax(logits[part, :shared])
            kl.append((np.exp(original) * (original - other)).sum(axis=-1))
            # Stored in 16 bits, the original's likeliest token may tie with the next.
            choice = other.argmax(axis=-1)[:, None]
            likeliest = original.max(axis=-1, keepdims=True)
            agreed.append((np.take_along_axis(original, choice, axis=-1) == likeliest)[:, 0])
            wanted = targets[FIRST_POSITION:][part, None]
            losses.append(-np.take_along_axis(other, wanted, axis=-1)[:, 0])
            original_losses.append(-np.take_along_axis(original, wanted, axis=-1)[:, 0])
        return cls(
            kl=np.maximum(np.concatenate(kl), 0.0),
            agreed=np.concatenate(agreed),
            losses=np.concatenate(losses),
            original_losses=np.concatenate(original_losses),
        )

    def quality(self, *, is_user_text: bool) -> DocumentQuality:
        """Means over the document."""
        return DocumentQuality(
            positions=int(self.kl.size),
            kl_mean=float(self.kl.mean(dtype=np.float64)),
            agreement=float(self.agreed.mean()),
            nll=float(self.losses.mean(dtype=np.float64)) if is_user_text else None,
            original_nll=float(self.original_losses.mean(dtype=np.float64))
            if is_user_text
            else None,
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
