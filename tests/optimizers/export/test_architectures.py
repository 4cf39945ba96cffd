"""Every architecture serves the very text that transformers generates, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import pytest

from artifacts.errors import SessionError
from artifacts.session import DecoderSession, Row
from artifacts.session_factory import open_session
from benchmarks import zoo
from optimizers.export import Exported
from optimizers.export.decoder import read_decoder
from optimizers.export.graph_file import save
from optimizers.export.reference import make_reference
from optimizers.export.verify import compare

NEW_TOKENS = 64
CHUNK = 11
SLOTS = (4, 0, 2, 5, 1)  # 3 stays idle
DISTINCT = 20  # of a text's 64 tokens: fewer would be a cycle that hides what came before
WINDOWED = ("mistral", "gemma2", "gemma3", "phi3_window")
MODELS = (*zoo.TIER_1, "phi3_window", *zoo.TIER_2)
FAULTS = [
    *((name, fault) for name in MODELS for fault in ("position", "rows")),
    *((name, "window") for name in WINDOWED),
]


class ServedModel(Protocol):
    """What the ``served`` fixture gives."""

    folder: Path
    exported: Any
    prompts: tuple[Any, ...]
    expected: tuple[tuple[int, ...], ...]


Serve = Callable[[str], ServedModel]


class ShiftedPosition:
    """A session that puts each generated token one position too early."""

    def __init__(self, session: DecoderSession) -> None:
        self.session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def step(self, rows: Sequence[Row]) -> Any:
        shifted = [
            Row(
                row.slot,
                row.start - (row.start > 1 and len(row.tokens) == 1),
                row.tokens,
                row.logits,
            )
            for row in rows
        ]
        return self.session.step(shifted)


class SwappedRows:
    """A session that mixes up the caches of two slots for every step after their first."""

    def __init__(self, session: DecoderSession, first: int, second: int) -> None:
        self.session = session
        self.other = {first: second, second: first}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def step(self, rows: Sequence[Row]) -> Any:
        swapped = [
            Row(
                self.other.get(row.slot, row.slot) if row.start else row.slot,
                row.start,
                row.tokens,
                row.logits,
            )
            for row in rows
        ]
        return self.session.step(swapped)


def opened(model: ServedModel, *, fault: str = "", folder: Path | None = None) -> DecoderSession:
    """Open the exported graph, with one planted fault if named."""
    path = model.exported.model
    if fault == "window":
        assert folder is not None
        path = without_windows(path, folder)
    session = open_session(
        path,
        model.exported.graph,
        slots=max(SLOTS) + 1,
        max_length=max(len(prompt) for prompt in model.prompts) + NEW_TOKENS,
        threads=1,
    )
    if fault == "position":
        return ShiftedPosition(session)  # type: ignore[return-value]
    if fault == "rows":
        return SwappedRows(session, SLOTS[2], SLOTS[3])  # type: ignore[return-value]
    return session


def without_windows(path: Path, folder: Path) -> Path:
    """Copy a graph, dropping the window of its attention."""
    model = ir.load(path)
    for node in model.graph:
        node.attributes.pop("local_window_size", None)
    return save(model, folder)


def greedy(
    session: DecoderSession, prompts: Sequence[Any], *, chunk: int, joins: Sequence[int]
) -> list[tuple[int, ...]]:
    """Continue prompts together; prompt i joins at step ``joins[i]``, fed ``chunk`` at a time."""
    texts = [list(prompt) for prompt in prompts]
    done = [0] * len(prompts)
    ends = [len(prompt) + NEW_TOKENS for prompt in prompts]
    step = 0
    while any(len(text) < end for text, end in zip(texts, ends, strict=True)):
        rows, owners = [], []
        for index, text in enumerate(texts):
            if step < joins[index] or len(text) == ends[index]:
                continue
            tokens = np.array(text[done[index] : done[index] + chunk], np.int64)
            last = done[index] + len(tokens) == len(text)
            rows.append(Row(SLOTS[index], done[index], tokens, int(last)))
            done[index] += len(tokens)
            if last:
                owners.append(index)
        if rows:
            logits = session.step(rows).logits
            for owner, line in zip(owners, logits, strict=True):
                texts[owner].append(int(line.argmax()))
        step += 1
    return [tuple(t[len(p) :]) for t, p in zip(texts, prompts, strict=True)]


def alone(session: DecoderSession, model: ServedModel) -> list[tuple[int, ...]]:
    """Continue each prompt by itself, whole."""
    texts = []
    for prompt in model.prompts:
        texts += greedy(session, [prompt], chunk=len(prompt), joins=[0])
        session.release(SLOTS[0])
    return texts


def mixed(session: DecoderSession, model: ServedModel) -> list[tuple[int, ...]]:
    """Continue all prompts in one batch: in chunks, and with some joining midway."""
    return greedy(session, model.prompts, chunk=CHUNK, joins=[0, 5, 2, 2, 20])


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_alone_is_that_of_transformers(name: str, served: Serve) -> None:
    """A served model says what transformers says, token by token."""
    model = served(name)
    assert min(len(set(text)) for text in model.expected) >= DISTINCT
    assert model.expected == tuple(alone(opened(model), model))


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_in_a_mixed_batch_is_that_of_transformers(name: str, served: Serve) -> None:
    """Neighbours, chunks and the moment of joining change nothing."""
    model = served(name)
    assert model.expected == tuple(mixed(opened(model), model))


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_planted_fault_changes_the_text(
    name: str, fault: str, served: Serve, tmp_path: Path
) -> None:
    """The comparison above notices one shifted position, a lost window, two swapped rows."""
    model = served(name)
    session = opened(model, fault=fault, folder=tmp_path)
    assert model.expected != tuple(mixed(session, model))


@pytest.mark.parametrize(("name", "fault"), [pair for pair in FAULTS if pair[1] != "rows"])
def test_a_planted_fault_changes_the_text_alone(
    name: str, fault: str, served: Serve, tmp_path: Path
) -> None:
    """The comparison of single prompts notices what can go wrong with one."""
    model = served(name)
    session = opened(model, fault=fault, folder=tmp_path)
    assert model.expected != tuple(alone(session, model))


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_verification_refuses_a_planted_fault(
    name: str, fault: str, served: Serve, tmp_path: Path
) -> None:
    """A graph that is wrong in one of these ways would not have been used."""
    model = served(name)
    reference = make_reference(read_decoder(model.folder), threads=1)
    assert compare(opened(model), reference).mismatch is None
    session = opened(model, fault=fault, folder=tmp_path)
    try:
        mismatch = compare(session, reference).mismatch
    except SessionError as error:
        mismatch = str(error)
    assert mismatch is not None
    assert "differ" in mismatch or "instead" in mismatch


@pytest.mark.parametrize("name", zoo.VARIANTS)
def test_config_variants_agree_with_transformers(
    name: str, exported: Callable[[str], Exported]
) -> None:
    """Scaled rotary embeddings, biases, odd sizes and tied heads are exported right at once."""
    record = exported(name).record
    assert record.tried == ()
    assert record.exporter == "mobius"
