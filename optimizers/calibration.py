"""The text that stages calibrate on, as token ids of the original model.

Owns which text that is (the user's, else the demo's own, else what the original writes itself), the
digest that stands for it in recipes, and the refusal of text that is too little or is measured on
as well. Made when a stage first asks for it. Knows nothing of stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from artifacts import texts
from artifacts.digest import sha256_file, sha256_json
from optimizers.errors import TextUseError
from optimizers.sources import Source, demo_text
from optimizers.stage import Report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WINDOW = 256  # tokens of one document
FEWEST = 16  # windows, or too little is known of a layer's inputs
MOST_TOKENS, LEAST_TOKENS = 32_768, 8_192
_SEED = 20_261_124  # another than the evaluation's, so that the texts differ
_SAMPLED = "sampled-1"
_FIELD = "calibration.text"


def text_of(model: str, given: str | None) -> str | None:
    """The file to calibrate on, or None where the model is to write the text itself."""
    return given or demo_text(model, "calibration.jsonl")


def digest_of(text: str | None) -> str:
    """What stands for the text in a recipe."""
    return _SAMPLED if text is None else sha256_file(texts.check(text))


class Calibration:
    """The text of one build."""

    def __init__(self, original: Source, text: str | None, evaluation: str | None) -> None:
        self._original = original
        self._text = text
        self._evaluation = evaluation
        self._windows: tuple[NDArray[np.int64], ...] = ()

    @property
    def key(self) -> str:
        """What stands for it among intermediate results: the text, and the model that reads it.

        After a substitute another model is worked on, and other originals may come to the same one.
        """
        return sha256_json({"text": digest_of(self._text), "of": self._original.model.revision})

    def windows(self, report: Report) -> tuple[NDArray[np.int64], ...]:
        """Documents of 256 tokens each (or what the model can take, if less).

        Raises:
            TextUseError: There is too little text, or some of it is measured on as well.
        """
        if not self._windows:
            self._windows = self._make(report)
        return self._windows

    def documents(self) -> list[list[int]] | None:
        """All of the text as token ids; None where there is none and the original is to write it.

        Raises:
            TextUseError: Some of it is measured on as well.
        """
        from optimizers.tokenizer_files import load_tokenizer

        if self._text is None:
            return None
        written = texts.read(self._text)
        if self._evaluation is not None:
            _refuse_shared(written, texts.read(self._evaluation))
        tokenizer = load_tokenizer(self._original.folder)
        return [tokenizer.encode(text).ids for text in written]

    def _make(self, report: Report) -> tuple[NDArray[np.int64], ...]:
        from optimizers.torch_models import load_module, longest_input, sample_text

        module = load_module(self._original.folder)
        window = min(WINDOW, longest_input(module))
        vocabulary = int(module.get_output_embeddings().weight.shape[0])
        budget = min(max(int(3e12 / module.num_parameters()), LEAST_TOKENS), MOST_TOKENS)
        documents = self.documents()
        if documents is None:
            report(0.0, "writing a calibration text")
            count = budget // window
            documents = sample_text(module, documents=count, length=window, seed=_SEED)
        return _cut(documents, window=window, count=budget // window, vocabulary=vocabulary)


def within(windows: Sequence[NDArray[np.int64]], vocabulary: int) -> tuple[NDArray[np.int64], ...]:
    """The windows that a model of a smaller vocabulary than the original's can read too.

    Raises:
        TextUseError: There are too few.
    """
    found = tuple(window for window in windows if int(window.max()) < vocabulary)
    if len(found) < FEWEST:
        raise TextUseError(
            f"Only {len(found)} passages of the calibration text are within the vocabulary.",
            path=_FIELD,
            remedy="Give more text.",
        )
    return found


def _refuse_shared(calibration: Sequence[str], evaluation: Sequence[str]) -> None:
    shared = set(calibration) & set(evaluation)
    if shared:
        raise TextUseError(
            f"{len(shared)} documents are in evaluation.text as well, so quality would be measured "
            "on what was calibrated on.",
            path=_FIELD,
            remedy="Take them out of one of the files.",
        )


def _cut(
    documents: Sequence[Sequence[int]], *, window: int, count: int, vocabulary: int
) -> tuple[NDArray[np.int64], ...]:
    """Cut documents into whole windows; the first of each comes before the second of any."""
    import numpy as np

    found: list[NDArray[np.int64]] = []
    for start in range(0, max(map(len, documents), default=0), window):
        for document in documents:
            part = np.asarray(document[start : start + window], np.int64)
            if part.size == window and int(part.max()) < vocabulary:
                found.append(part)
    if len(found) < FEWEST:
        raise TextUseError(
            f"The calibration text has {len(found)} passages of {window} tokens; at least {FEWEST} "
            "are needed.",
            path=_FIELD,
            remedy="Give more text, or longer documents; short ones are not put together.",
        )
    return tuple(found[:count])
