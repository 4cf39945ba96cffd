"""The packed session over a real graph, against whole runs of one row."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from artifacts.errors import BugError, SessionError, StepTerminatedError
from artifacts.manifest import Forms, GraphSpec
from artifacts.packed_session import PackedSession
from artifacts.scores import score
from artifacts.session import Row, temperatures_of

SLOTS, LENGTH = 5, 96
FLOAT_CACHE, INT8_CACHE = "tiny_llama_export", "tiny_llama_int8_cache"
ROUNDING = {
    FLOAT_CACHE: 1e-4,
    # Float rounding may put a number on the other side of a step: one such costs up to 1.5e-3.
    INT8_CACHE: 5e-3,
}
Open = Callable[[], PackedSession]


@pytest.fixture(scope="module", params=[FLOAT_CACHE, INT8_CACHE])
def kind(request: pytest.FixtureRequest) -> str:
    """The cache's form, as the fixture that gives such a graph."""
    return str(request.param)


@pytest.fixture(scope="module")
def open_packed(request: pytest.FixtureRequest, kind: str) -> Open:
    """A fresh session over the tiny Llama."""
    model, graph = request.getfixturevalue(kind)

    def open_() -> PackedSession:
        return PackedSession(model, graph, slots=SLOTS, max_length=LENGTH, threads=1)

    return open_


@pytest.fixture(scope="module")
def whole(open_packed: Open) -> Callable[[np.ndarray], np.ndarray]:
    """All logits of one prompt, computed alone in slot 0 of a fresh cache."""
    session = open_packed()

    def run(tokens: np.ndarray) -> np.ndarray:
        session.release(0)
        return session.step([Row(0, 0, tokens, len(tokens))]).logits.copy()

    return run


@pytest.mark.parametrize("seed", range(6))
def test_any_schedule_equals_whole_runs(
    open_packed: Open, whole: object, kind: str, seed: int
) -> None:
    """Random chunks, neighbours, idle slots, copies and restarts: the logits stay the same."""
    session = open_packed()
    rng = np.random.default_rng(seed)
    texts = {slot: rng.integers(0, session.vocab_size, LENGTH) for slot in range(SLOTS)}
    done = dict.fromkeys(range(SLOTS), 0)
    for _ in range(40):
        action = rng.random()
        if action < 0.1:
            slot = int(rng.integers(SLOTS))
            done[slot] = int(rng.integers(0, done[slot] + 1))
            session.release(slot, done[slot])
            texts[slot] = np.concatenate(
                [texts[slot][: done[slot]], rng.integers(0, session.vocab_size, LENGTH)]
            )[:LENGTH]
        elif action < 0.2:
            source, target = rng.choice(SLOTS, 2, replace=False).tolist()
            if done[source]:
                length = int(rng.integers(1, done[source] + 1))
                session.copy(source, target, length)
                done[target] = length
                texts[target] = np.concatenate(
                    [texts[source][:length], rng.integers(0, session.vocab_size, LENGTH)]
                )[:LENGTH]
        rows = []
        for slot in rng.permutation(SLOTS).tolist():
            room = LENGTH - done[slot]
            if room and rng.random() < 0.6:
                count = int(rng.integers(1, min(room, 20) + 1)) if rng.random() < 0.5 else 1
                tokens = texts[slot][done[slot] : done[slot] + count]
                rows.append(Row(slot, done[slot], tokens, int(rng.integers(0, count + 1))))
        if not rows:
            continue
        logits = session.step(rows).logits
        at = 0
        for row in rows:
            end = row.start + len(row.tokens)
            done[row.slot] = end
            expected = whole(texts[row.slot][:end])[end - row.logits :]  # type: ignore[operator]
            got = logits[at : at + row.logits]
            np.testing.assert_allclose(got, expected, atol=ROUNDING[kind], rtol=0)
            at += row.logits
        assert at == len(logits)


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_what_numpy_computes(open_packed: Open, seed: int) -> None:
    """Maxima, probabilities and sums of any mix of rows, against their definition."""
    session = open_packed()
    rng = np.random.default_rng(seed)
    for _ in range(12):
        rows = []
        for slot in rng.permutation(SLOTS)[: int(rng.integers(1, SLOTS + 1))].tolist():
            tokens = rng.integers(0, session.vocab_size, int(rng.integers(1, 9)))
            temperature = float(rng.choice([0.0, 0.001, 0.7, 1.0, 100.0]))
            logits = int(rng.integers(0, 5) % (len(tokens) + 1))
            sampled = int(rng.integers(1, max(logits, 1) + 1))
            rows.append(Row(slot, 0, tokens, logits, temperature, sampled))
        given = session.step(rows)
        expected = score(given.logits, temperatures_of(rows))
        assert given.probabilities.shape == expected.probabilities.shape
        for name in ("best", "best_logits", "block_maxima"):
            np.testing.assert_array_equal(getattr(given, name), getattr(expected, name), name)
        np.testing.assert_allclose(given.probabilities, expected.probabilities, atol=1e-5)
        np.testing.assert_allclose(given.block_sums, expected.block_sums, atol=1e-5)


def test_a_damaged_slot_is_told(open_packed: Open) -> None:
    """Numbers that are none in one slot's cache show in the scores of its row, and no other.

    An integer is always a number: of an int8 cache, whatever lies in it, all scores are.
    """
    session = open_packed()
    tokens = np.arange(20) % session.vocab_size
    session.step([Row(0, 0, tokens[:19], 0), Row(1, 0, tokens[:19], 0)])
    is_int8 = session.cache.tensors[0].array.dtype == np.int8
    for tensor in session.cache.tensors:
        tensor.array[0, :, :19] = -128 if is_int8 else np.nan
    rows = [Row(0, 19, tokens[19:], 1, 1.0), Row(1, 19, tokens[19:], 1, 1.0)]
    scores = session.step(rows)
    assert np.isfinite(scores.best_logits).tolist() == [is_int8, True]
    assert np.isfinite(scores.block_sums).all(axis=1).tolist() == [is_int8, True]


def test_an_artifact_without_scores_is_refused(
    tiny_llama_export: tuple[Path, GraphSpec],
) -> None:
    """What an older version has built says so, instead of failing in its first step."""
    model, graph = tiny_llama_export
    older = graph.model_copy(
        update={"inputs": tuple(name for name in graph.inputs if name != "sampled_rows")}
    )
    with pytest.raises(SessionError, match="older version"):
        PackedSession(model, older, slots=1, max_length=8)


def test_the_comparison_can_fail(open_packed: Open, whole: object) -> None:
    """Two rows of the cache swapped give other logits, far beyond rounding."""
    session = open_packed()
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, session.vocab_size, (2, 20))
    session.step([Row(0, 0, first[:19], 0), Row(1, 0, second[:19], 0)])
    for tensor in session.cache.tensors:
        tensor.array[[0, 1], :, 10] = tensor.array[[1, 0], :, 10]
    logits = session.step([Row(0, 19, first[19:], 1)]).logits
    assert np.abs(logits - whole(first)[-1:]).max() > 1e-2  # type: ignore[operator]


def test_a_neighbour_changes_nothing_beyond_rounding(open_packed: Open, kind: str) -> None:
    """The same row alone and beside four others agrees within rounding of the logit scale."""
    session = open_packed()
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, session.vocab_size, (SLOTS, 30))
    alone = session.step([Row(2, 0, tokens[2], 30)]).logits.copy()
    session.release(2)
    together = session.step([Row(slot, 0, tokens[slot], 30) for slot in range(SLOTS)]).logits
    difference = np.abs(together[60:90] - alone).max()
    assert difference < ROUNDING[kind] * np.abs(alone).max()


def test_an_int8_cache_takes_a_quarter(
    tiny_llama_export: tuple[Path, GraphSpec], tiny_llama_int8_cache: tuple[Path, GraphSpec]
) -> None:
    """The engine's budget counts in bytes per token, and gets four times the tokens."""
    before, after = (
        PackedSession(model, graph, slots=1, max_length=8).kv_bytes_per_token
        for model, graph in (tiny_llama_export, tiny_llama_int8_cache)
    )
    assert before == 4 * after


def test_too_long_or_double_rows_are_refused(open_packed: Open) -> None:
    """A broken plan is a bug, found before it reaches the cache."""
    session = open_packed()
    tokens = np.zeros(LENGTH + 1, np.int64)
    with pytest.raises(BugError):
        session.step([Row(0, 0, tokens, 1)])
    with pytest.raises(BugError):
        session.step([Row(0, 0, tokens[:3], 1), Row(0, 3, tokens[:3], 1)])


def test_length_beyond_the_model_is_refused(tiny_llama_export: tuple[Path, GraphSpec]) -> None:
    """max_length cannot exceed what the graph computes right."""
    model, graph = tiny_llama_export
    with pytest.raises(SessionError, match=r"engine\.max_length"):
        PackedSession(model, graph, slots=1, max_length=graph.max_length + 1)


def test_broken_file_is_a_session_error(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """A file that is no model is refused by name."""
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(SessionError, match=r"model\.onnx"):
        PackedSession(broken, tiny_llama_export[1], slots=1, max_length=8)


def test_both_forms_are_loaded_at_once(
    tiny_llama_export: tuple[Path, GraphSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each graph packs its weights on one core: here each waits until the other has begun."""
    meeting, opened = threading.Barrier(2), []

    def meet(path: Path, *_: object, **__: object) -> None:
        meeting.wait(10)
        opened.append(path.name)

    monkeypatch.setattr("artifacts.packed_session.PackedGraph", meet)
    model, graph = tiny_llama_export
    forms = Forms(choice="by_role", prompts="prompts.onnx")
    PackedSession(model, graph.model_copy(update={"forms": forms}), slots=1, max_length=8)
    assert sorted(opened) == sorted([model.name, "prompts.onnx"])


@pytest.mark.parametrize("broken", ["model.onnx", "prompts.onnx"])
def test_either_form_s_error_is_told(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path, broken: str
) -> None:
    """By the name of the file that cannot be loaded."""
    model, graph = tiny_llama_export
    for name in ("model.onnx", "prompts.onnx"):
        shutil.copy(model, tmp_path / name)
    for weights in model.parent.glob(f"{model.name}.*"):
        shutil.copy(weights, tmp_path)
    (tmp_path / broken).write_bytes(b"not a model")
    forms = Forms(choice="by_role", prompts="prompts.onnx")
    with pytest.raises(SessionError, match=broken):
        PackedSession(
            tmp_path / "model.onnx",
            graph.model_copy(update={"forms": forms}),
            slots=1,
            max_length=8,
        )


def test_terminate_ends_a_running_step(open_packed: Open) -> None:
    """A step is ended from another thread, and the next one runs again."""
    session = open_packed()
    stop = threading.Event()

    def keep_terminating() -> None:
        while not stop.wait(0.0005):
            session.terminate()

    killer = threading.Thread(target=keep_terminating)
    killer.start()
    tokens = np.zeros(LENGTH, np.int64)
    try:
        deadline = time.monotonic() + 30
        with pytest.raises(StepTerminatedError):
            _step_until(session, tokens, deadline)
    finally:
        stop.set()
        killer.join()
    assert np.isfinite(session.step([Row(0, 0, tokens, 1)]).logits).all()


def _step_until(session: PackedSession, tokens: np.ndarray, deadline: float) -> None:
    while time.monotonic() < deadline:
        session.step([Row(slot, 0, tokens, 1) for slot in range(SLOTS)])
