"""Which text stages calibrate on, and when it counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.layout import Layout
from optimizers.calibration import FEWEST, WINDOW, Calibration, digest_of, text_of
from optimizers.errors import TextUseError
from optimizers.recipe import recipe_digest, source_key, stage_key
from optimizers.sources import DEMO, Source, fetch
from optimizers.spec import parse_chain


def quiet(fraction: float, message: str) -> None:
    """Take progress and say nothing."""


@pytest.fixture
def original(tiny_llama_folder: Path, tmp_path: Path) -> Source:
    layout = Layout(tmp_path / "store")
    return fetch(str(tiny_llama_folder), None, layout=layout, offline=True, report=quiet)


def _write(path: Path, documents: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


def _documents(count: int) -> list[str]:
    return [f"{number:04d} " * (WINDOW // 5 + 1) for number in range(count)]


def test_documents_are_cut_into_equal_windows(original: Source, tmp_path: Path) -> None:
    """One token per byte here; what is left over at a document's end is not used."""
    text = _write(tmp_path / "text.jsonl", _documents(FEWEST + 2))
    windows = Calibration(original, text, None).windows(quiet)
    assert len(windows) == FEWEST + 2
    assert {window.shape for window in windows} == {(WINDOW,)}
    assert windows[1][:4].tobytes() != windows[2][:4].tobytes()


def test_the_original_writes_its_own_text(original: Source) -> None:
    """Where nobody gives one; always the same, within the vocabulary."""
    windows = Calibration(original, None, None).windows(quiet)
    again = Calibration(original, None, None).windows(quiet)
    assert len(windows) >= FEWEST
    assert all((a == b).all() for a, b in zip(windows, again, strict=True))
    assert max(int(window.max()) for window in windows) < 256
    assert len({window.tobytes() for window in windows}) == len(windows)


def test_too_little_text_is_refused(original: Source, tmp_path: Path) -> None:
    """With how much there is and how much it takes."""
    text = _write(tmp_path / "text.jsonl", _documents(FEWEST - 1))
    with pytest.raises(TextUseError, match=f"{FEWEST - 1} passages") as refused:
        Calibration(original, text, None).windows(quiet)
    assert refused.value.path == "calibration.text"


def test_text_that_is_measured_on_is_refused(original: Source, tmp_path: Path) -> None:
    """One document in both files is enough; texts apart are fine."""
    documents = _documents(2 * FEWEST)
    text = _write(tmp_path / "calibration.jsonl", documents[:FEWEST])
    shared = _write(tmp_path / "shared.jsonl", documents[FEWEST - 1 :])
    with pytest.raises(TextUseError, match=r"1 documents are in evaluation\.text as well"):
        Calibration(original, text, shared).windows(quiet)
    apart = _write(tmp_path / "apart.jsonl", documents[FEWEST:])
    assert len(Calibration(original, text, apart).windows(quiet)) == FEWEST


def test_the_demo_model_brings_its_own_text() -> None:
    """Apart from what it is measured on; other models bring none."""
    assert str(text_of(DEMO, None)).endswith("calibration.jsonl")
    assert text_of("some/model", None) is None
    assert text_of(DEMO, "mine.txt") == "mine.txt"


def test_a_recipe_depends_on_text_only_where_a_stage_reads_it() -> None:
    """Another calibration text makes another artifact of a calibrated chain, and of no other."""
    calibrated = parse_chain("c", [{"prune": {"method": "wanda", "amount": 0.5}}]).stages
    plain = parse_chain("c", [{"prune": {"amount": 0.5}}]).stages
    source = source_key("r")
    assert recipe_digest("r", calibrated, "a") != recipe_digest("r", calibrated, "b")
    assert recipe_digest("r", plain, "a") == recipe_digest("r", plain, "b")
    assert stage_key(source, calibrated[0], "a") != stage_key(source, calibrated[0], "b")
    assert stage_key(source, plain[0], "a") == stage_key(source, plain[0], "b")


def test_a_text_s_digest_is_its_content(tmp_path: Path) -> None:
    """Wherever it lies; text that the model writes has a name."""
    one = _write(tmp_path / "one.jsonl", ["a b c"])
    two = _write(tmp_path / "two.jsonl", ["a b c"])
    three = _write(tmp_path / "three.jsonl", ["a b d"])
    assert digest_of(one) == digest_of(two) != digest_of(three)
    assert digest_of(None) not in {digest_of(one), digest_of(three)}


def test_a_key_names_the_model_that_the_text_is_of(original: Source) -> None:
    """Two originals may go on with one substitute, each calibrating on its own text."""
    other = replace(original, model=original.model.model_copy(update={"revision": "another"}))
    assert Calibration(original, None, None).key != Calibration(other, None, None).key
    assert Calibration(original, None, None).key == Calibration(original, None, None).key
