"""The text that students are trained on: which it is, what is held out, and how it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from optimizers.calibration import FEWEST, Calibration
from optimizers.distillation import texts
from optimizers.distillation.texts import MOST_HELD_OUT, Split, TrainingText, pack, parted
from optimizers.errors import TextUseError
from optimizers.results import Results
from optimizers.torch_models import load_module
from tests.optimizers.distillation.conftest import LENGTH, quiet

if TYPE_CHECKING:
    from tests.optimizers.distillation.conftest import Bench


def _split(bench: Bench, evaluation: str | None = None, **more: Any) -> Split:
    results = Results(bench.layout)
    calibration = Calibration(bench.original, bench.text, evaluation)
    module = load_module(bench.original.folder)
    given = {"least": 20, "most": 1_000, "window": LENGTH, "is_sampled": False, "report": quiet}
    return TrainingText(bench.original, calibration, results).split(module, **given | more)


def _lines(windows: Any) -> set[bytes]:
    return {window.tobytes() for window in windows}


def test_every_eighth_document_is_held_out_or_the_end_of_each() -> None:
    """Nothing of what is judged by is trained on, and nothing is lost."""
    documents = [[number] * 3 for number in range(17)]
    train, held_out = parted(documents)
    assert held_out == [[7] * 3, [15] * 3]
    assert train + held_out == [one for one in documents if one[0] not in {7, 15}] + held_out
    train, held_out = parted([list(range(16)), list(range(100, 109))])
    assert held_out == [[14, 15], [108]]
    assert train == [list(range(14)), list(range(100, 108))]


def test_documents_are_put_together_and_cut() -> None:
    """With the end of a document between two; windows with unknown ids are left out."""
    found = pack([[1, 2, 3], [4], [5, 6, 99], [7, 8]], [0], window=4, vocabulary=50)
    assert [window.tolist() for window in found] == [[1, 2, 3, 0], [4, 0, 5, 6]]
    assert pack([], [0], window=4, vocabulary=50) == []


def test_the_calibration_text_is_read_whole(bench: Bench) -> None:
    """Beyond what calibration takes of it, up to as much as is wanted."""
    whole = _split(bench)
    assert len(whole.train) > 50
    assert 0 < len(whole.held_out) <= MOST_HELD_OUT
    assert not _lines(whole.train) & _lines(whole.held_out)
    some = _split(bench, most=30)
    assert len(some.train) == 30
    assert _lines(some.held_out) == _lines(whole.held_out)
    assert not any(bench.layout.stages.iterdir())  # nothing had to be written


def test_what_is_missing_is_written_by_the_original(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the calibration text, and none of it is held out."""
    monkeypatch.setattr(texts, "SHARD", 8)
    given = _split(bench)
    topped_up = _split(bench, least=len(given.train) + 10)
    assert len(topped_up.train) == len(given.train) + 10
    assert _lines(given.train) < _lines(topped_up.train)
    assert _lines(given.held_out) == _lines(topped_up.held_out)


def test_written_text_is_kept_in_shards(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """More begins with less, another build writes nothing again, and no document comes twice."""
    monkeypatch.setattr(texts, "SHARD", 8)
    few = _split(bench, is_sampled=True, least=6)
    assert len(few.train) == 6
    assert len(few.held_out) == FEWEST
    assert len(list(bench.layout.stages.iterdir())) == 3
    more = _split(bench, is_sampled=True, least=20)
    assert len(_lines(more.train) | _lines(more.held_out)) == 20 + FEWEST
    assert _lines(few.train) < _lines(more.train)
    assert _lines(few.held_out) == _lines(more.held_out)

    def never(*_: Any, **__: Any) -> Any:
        pytest.fail("this was written before")

    monkeypatch.setattr("optimizers.torch_models.sample_text", never)
    again = _split(bench, is_sampled=True, least=20)
    assert all(np.array_equal(a, b) for a, b in zip(again.train, more.train, strict=True))


def test_text_that_is_measured_on_is_refused(bench: Bench) -> None:
    """As it is for calibration."""
    with pytest.raises(TextUseError, match=r"evaluation\.text as well"):
        _split(bench, evaluation=bench.text)


def test_too_little_text_is_refused(bench: Bench) -> None:
    """With what can be done about it; text that the original writes is never too little."""
    with pytest.raises(TextUseError, match=f"at least {FEWEST}") as refused:
        _split(bench, window=1_000)
    assert "text: sampled" in refused.value.remedy
