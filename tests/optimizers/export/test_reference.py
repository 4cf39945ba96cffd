"""The oracle's texts: long enough to cross a window, short enough to be affordable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import zoo
from optimizers.export import reference
from optimizers.export.decoder import read_decoder
from optimizers.export.reference import GENERATED, make_reference
from optimizers.export.verify import _judge


def test_the_longest_text_crosses_the_window(zoo_folder: Callable[[str], Path]) -> None:
    """A lost window cannot hide behind a short prompt."""
    made = make_reference(read_decoder(zoo_folder("mistral")), threads=1)
    assert made.texts[0].prompt > zoo.WINDOW
    assert made.notes == ()
    assert len({text.prompt for text in made.texts}) == len(made.texts)


def test_a_window_that_is_too_long_to_cross_is_noted(
    zoo_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not verified is said, not passed over."""
    monkeypatch.setattr(reference, "_OPERATIONS", 0.0)
    decoder = replace(read_decoder(zoo_folder("mistral")), windows=(100, None))
    made = make_reference(decoder, threads=1)
    assert "100 tokens was not crossed" in made.notes[0]


def test_texts_fit_into_the_model(zoo_folder: Callable[[str], Path]) -> None:
    """A model of few positions is verified within them."""
    decoder = replace(read_decoder(zoo_folder("llama")), max_length=30)
    for text in make_reference(decoder, threads=1).texts:
        assert len(text.tokens) <= 30


def test_the_continuation_is_the_modules_own(zoo_folder: Callable[[str], Path]) -> None:
    """The generated tokens are the most likely ones at the position before each."""
    text = make_reference(read_decoder(zoo_folder("llama")), threads=1).texts[0]
    best = text.logits[-GENERATED - 1 : -1].argmax(axis=-1)
    np.testing.assert_array_equal(text.tokens[-GENERATED:], best)


def test_other_tokens_pass_only_within_the_rounding(zoo_folder: Callable[[str], Path]) -> None:
    """A different token is a mismatch unless the module itself is undecided."""
    made = make_reference(read_decoder(zoo_folder("llama")), threads=1)
    text = made.texts[0]
    assert _judge(text, text.logits, made.scale) is None
    rounding = 1e-4 * made.scale
    near = text.logits.copy()
    near[-1] = 0.0
    near[-1, 3:5] = made.scale
    undecided = replace(text, logits=near)
    flipped = near.copy()
    flipped[-1, 4] += rounding / 2
    assert _judge(undecided, flipped, made.scale) is None
    wrong = near.copy()
    wrong[-1, 4] += rounding * 2
    assert "differ" in str(_judge(undecided, wrong, made.scale))
    broken = near.copy()
    broken[-1, 0] = np.nan
    assert "differ" in str(_judge(undecided, broken, made.scale))
