"""Quality figures, against plain computations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts import texts
from artifacts.errors import TextError
from artifacts.isa import isa_class
from artifacts.measure import measure
from artifacts.reference import (
    FIRST_POSITION,
    Reference,
    choose_windows,
    load_reference,
    make_reference,
    token_budget,
)

VOCABULARY = 50


class Table:
    """A scorer whose logits depend on the last token alone."""

    def __init__(self, table: NDArray[np.float32]) -> None:
        self.table = table

    def logits(self, tokens: NDArray[np.int64], first: int) -> NDArray[np.float32]:
        return self.table[tokens[first:]]


@pytest.fixture
def table() -> NDArray[np.float32]:
    logits = 3 * np.random.default_rng(0).standard_normal((VOCABULARY, VOCABULARY))
    return logits.astype(np.float32)


def _documents() -> tuple[NDArray[np.int64], ...]:
    rng = np.random.default_rng(1)
    return tuple(rng.integers(0, VOCABULARY, size) for size in (40, 100, 33))


def _reference(folder: Path, table: NDArray[np.float32]) -> Reference:
    make_reference(folder, _documents(), Table(table), vocabulary=VOCABULARY)
    return load_reference(folder)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    shifted: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return shifted


def test_the_original_is_not_away_from_itself(tmp_path: Path, table: NDArray[np.float32]) -> None:
    """Storing log-probabilities in 16 bits costs less than a millionth of a nat."""
    quality = measure(_reference(tmp_path, table), Table(table), is_user_text=True)
    assert 0 <= quality.kl_mean < 1e-6
    assert quality.top1_agreement == 1
    assert quality.perplexity == pytest.approx(quality.original_perplexity, rel=1e-3)


def test_figures_are_what_their_definitions_say(tmp_path: Path, table: NDArray[np.float32]) -> None:
    """KL(original || variant), its 99th percentile, agreement and perplexity, by hand."""
    other = table + np.random.default_rng(2).standard_normal(table.shape).astype(np.float32)
    quality = measure(_reference(tmp_path, table), Table(other), is_user_text=True)
    kl, agreed, losses = [], [], []
    for document in _documents():
        for position in range(FIRST_POSITION, document.size - 1):
            p = _log_softmax(table[document[position]])
            q = _log_softmax(other[document[position]])
            kl.append(float((np.exp(p) * (p - q)).sum()))
            agreed.append(p.argmax() == q.argmax())
            losses.append(-q[document[position + 1]])
    assert quality.positions == len(kl)
    assert quality.documents == 3
    assert quality.kl_mean == pytest.approx(np.mean(kl), rel=1e-3)
    assert quality.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-2)
    assert quality.top1_agreement == pytest.approx(np.mean(agreed))
    assert quality.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)


def test_documents_add_up_to_the_whole(tmp_path: Path, table: NDArray[np.float32]) -> None:
    """Weighted by their positions, the documents' means are the whole's, and they differ."""
    other = table + np.random.default_rng(2).standard_normal(table.shape).astype(np.float32)
    quality = measure(_reference(tmp_path, table), Table(other), is_user_text=True)
    documents = quality.by_document
    positions = [document.positions for document in documents]
    assert (len(documents), sum(positions)) == (quality.documents, quality.positions)
    assert [document.size - 1 - FIRST_POSITION for document in _documents()] == positions
    nll = [document.nll for document in documents]
    assert len(set(nll)) == len(documents)
    means = {
        "kl_mean": np.average([document.kl_mean for document in documents], weights=positions),
        "top1_agreement": np.average([x.agreement for x in documents], weights=positions),
        "perplexity": np.exp(np.average(nll, weights=positions)),
        "original_perplexity": np.exp(
            np.average([document.original_nll for document in documents], weights=positions)
        ),
    }
    for name, mean in means.items():
        assert getattr(quality, name) == pytest.approx(mean, rel=1e-5), name


def test_only_the_shared_vocabulary_counts(tmp_path: Path, table: NDArray[np.float32]) -> None:
    """Padding rows of a larger embedding say nothing about the model."""
    padded = np.concatenate([table, np.full((VOCABULARY, 14), 50.0, np.float32)], axis=1)
    quality = measure(_reference(tmp_path, table), Table(padded), is_user_text=False)
    assert quality.kl_mean < 1e-6


def test_perplexity_is_not_told_on_sampled_text(tmp_path: Path, table: NDArray[np.float32]) -> None:
    """On its own text a model's perplexity is just its entropy."""
    quality = measure(_reference(tmp_path, table), Table(table), is_user_text=False)
    assert quality.perplexity is None
    assert quality.original_perplexity is None
    assert {(x.nll, x.original_nll) for x in quality.by_document} == {(None, None)}


def test_windows_take_turns_between_documents_and_stay_within_the_budget() -> None:
    """A long document does not crowd out the others, and short ends are left out."""
    documents = [list(range(300)), [1] * 100, [2] * 20]
    chosen = choose_windows(documents, window=100, tokens=350, vocabulary=10)
    assert [part.size for part in chosen] == [100, 100, 100]
    assert [int(part[0]) for part in chosen] == [0, 1, 100]
    assert choose_windows(documents, window=100, tokens=350, vocabulary=10**9) == ()


def test_larger_models_are_compared_on_fewer_tokens_but_never_too_few() -> None:
    """A 99th percentile needs 2,000 positions."""
    assert token_budget(5_000_000, 256) == 8192
    assert token_budget(7_000_000_000, 256) - 10 * (FIRST_POSITION + 1) > 2000


def test_texts_are_read_from_both_forms(tmp_path: Path) -> None:
    """One document per line, or parted by empty lines."""
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "one", "more": 1}\n\n{"text": "two"}\n{"text": " "}\n')
    plain = tmp_path / "a.txt"
    plain.write_text("one\n\n\ntwo\n")
    assert texts.read(str(lines)) == texts.read(str(plain)) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x", "neither"),
        ("a.jsonl", '{"text": "one"}\n{"words": 1}', "Line 2"),
        ("a.jsonl", '{"text": 1}', "no text"),
        ("a.jsonl", "", "holds no text"),
        ("a.txt", "\n \n", "holds no text"),
    ],
)
def test_a_file_that_is_no_text_is_told(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    """The error names the line."""
    (tmp_path / name).write_text(content)
    with pytest.raises(TextError, match=message):
        texts.read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("x86_64", "flags\t: fpu avx2", "x86_64-avx2"),
        ("x86_64", "flags : avx2 avx_vnni", "x86_64-avx-vnni"),
        ("x86_64", "flags : avx2 avx512f avx512_vnni", "x86_64-avx512-vnni"),
        ("x86_64", "flags : avx512f avx512_vnni amx_int8", "x86_64-amx"),
        ("x86_64", "", "x86_64-base"),
        ("aarch64", "Features : fp asimd asimddp", "aarch64-dotprod"),
    ],
)
def test_instruction_sets_fall_into_classes(
    tmp_path: Path, machine: str, flags: str, name: str
) -> None:
    """Figures from one class are not mistaken for another's."""
    path = tmp_path / "cpuinfo"
    path.write_text(flags + "\n")
    assert isa_class(path, machine) == name


def test_a_reference_is_plain_arrays(tmp_path: Path, table: NDArray[np.float32]) -> None:
    """Nothing that is stored can run code when it is read."""
    _reference(tmp_path, table)
    for path in tmp_path.iterdir():
        np.load(path, allow_pickle=False)
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == json.dumps(
        ["lengths.npy", "log_probs.npy", "tokens.npy"]
    )
