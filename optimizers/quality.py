"""Judges what each step of a chain cost, against the original model and always on the same text.

Owns the choice of that text (the user's, else the demo's held-out files, else what the original
writes itself, once) and the reuse of figures. Knows nothing of stages or of file formats.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from artifacts import texts
from artifacts.digest import sha256_file, sha256_json
from artifacts.errors import TextError
from artifacts.isa import isa_class
from artifacts.manifest import GraphSpec, Quality, StageRecord
from artifacts.measure import measure, open_scorer
from artifacts.reference import (
    SAMPLED_WINDOW,
    USER_WINDOW,
    Reference,
    Scorer,
    choose_windows,
    load_reference,
    make_reference,
    token_budget,
)
from optimizers.recipe import libraries
from optimizers.results import Made, Results
from optimizers.sources import Source, demo_text
from optimizers.stage import Report

_VERSION = 1  # of how text is chosen and of what is stored
_FIGURES = 2  # version of what is kept of each judgement
_SEED = 20_261_123


class Judge:
    """Measures steps of one build."""

    def __init__(
        self, results: Results, original: Source, text: str | None, threads: int | None
    ) -> None:
        self._results = results
        self._original = original
        self._text = text or demo_text(original.model.id, "heldout.jsonl")
        self._threads = threads
        self._digest = sha256_file(texts.check(self._text)) if self._text else None
        self._key = sha256_json(
            {
                "reference": original.model.revision,
                "text": self._digest,
                "version": _VERSION,
                "libraries": libraries("torch"),
            }
        )
        self._reference: Reference | None = None

    @property
    def text(self) -> str | None:
        """The file that is measured on; None where the original writes the text itself."""
        return self._text

    def torch(self, key: str, folder: Path, report: Report) -> Quality:
        """Judge a result of the torch form."""
        return self._judge(key, lambda: _torch_scorer(folder), report)

    def onnx(self, key: str, model: Path, graph: GraphSpec, report: Report) -> Quality:
        """Judge a result of the ONNX form."""
        return self._judge(key, lambda: open_scorer(model, graph, threads=self._threads), report)

    def _judge(self, key: str, open_variant: Callable[[], Scorer], report: Report) -> Quality:
        figures_key = sha256_json(
            {
                "quality": key,
                "figures": _FIGURES,
                "reference": self._key,
                "isa": isa_class(),
                "libraries": libraries("onnx"),
            }
        )

        def work(target: Path) -> Made:
            del target
            reference = self._load(report)
            report(1.0, "measuring")
            quality = measure(reference, open_variant(), is_user_text=self._text is not None)
            return Made(_record("quality", quality))

        result = self._results.find(figures_key) or self._results.make(figures_key, work, keep=True)
        if result.record.quality is None:
            raise TextError("Stored figures are empty.")
        return result.record.quality.model_copy(update={"text_sha256": self._digest})

    def _load(self, report: Report) -> Reference:
        if self._reference is None:
            result = self._results.find(self._key) or self._results.make(
                self._key, lambda target: self._make(target, report), keep=True
            )
            self._reference = load_reference(result.folder)
        return self._reference

    def _make(self, target: Path, report: Report) -> Made:
        """Have the original score the text, which it may have to write first."""
        from optimizers.tokenizer_files import load_tokenizer
        from optimizers.torch_models import TorchScorer, load_module, longest_input, sample_text

        began = time.monotonic()
        module = load_module(self._original.folder)
        vocabulary = int(module.get_output_embeddings().weight.shape[0])
        window = min(USER_WINDOW if self._text else SAMPLED_WINDOW, longest_input(module))
        budget = token_budget(module.num_parameters(), window)
        if self._text is None:
            report(1.0, "writing an evaluation text")
            documents = sample_text(module, documents=budget // window, length=window, seed=_SEED)
        else:
            tokenizer = load_tokenizer(self._original.folder)
            documents = [tokenizer.encode(text).ids for text in texts.read(self._text)]
        chosen = choose_windows(documents, window=window, tokens=budget, vocabulary=vocabulary)
        if not chosen:
            raise TextError(
                "No document of the evaluation text is long enough to measure on.",
                remedy="Give documents of a hundred words or more.",
            )
        report(1.0, "scoring the original")
        make_reference(target, chosen, TorchScorer(module), vocabulary=vocabulary)
        record = _record("reference", None)
        return Made(record.model_copy(update={"seconds": time.monotonic() - began}))


def _torch_scorer(folder: Path) -> Scorer:
    from optimizers.torch_models import TorchScorer, load_module

    return TorchScorer(load_module(folder))


def _record(stage: str, quality: Quality | None) -> StageRecord:
    return StageRecord(stage=stage, form="torch", seconds=0.0, size_bytes=0, quality=quality)
