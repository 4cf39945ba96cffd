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


@pytest.mark.parametrize("window", [zoo.WINDOW, 4096])
def test_the_longest_text_crosses_the_window(window: int, tmp_path: Path) -> None:
    """A lost window cannot hide behind a short prompt; a long one is cut, and that is noted."""
    folder = zoo.write_model(tmp_path, "mistral", sliding_window=window)
    made = make_reference(read_decoder(folder), threads=1)
    assert made.windows == (window, window)
    assert made.window == (None if window <= reference.WINDOW else reference.WINDOW)
    assert made.texts[0].prompt > reference.WINDOW
    assert len({text.prompt for text in made.texts}) == len(made.texts)
    assert made.notes == (
        () if made.window is None else ("the sliding window of 4096 tokens was verified at 16",)
    )


def test_a_cut_window_is_that_of_the_module(tmp_path: Path) -> None:
    """The same weights say the same whether a window is short by itself or has been cut."""
    short = zoo.write_model(tmp_path / "short", "gemma2", sliding_window=reference.WINDOW)
    long = zoo.write_model(tmp_path / "long", "gemma2", sliding_window=4096)
    none = zoo.write_model(
        tmp_path / "none", "gemma2", layer_types=["full_attention", "full_attention"]
    )
    texts = [
        make_reference(read_decoder(folder), threads=1).texts[0] for folder in (short, long, none)
    ]
    np.testing.assert_array_equal(texts[0].logits, texts[1].logits)
    assert np.abs(texts[0].logits[:40] - texts[2].logits[:40]).max() > 0.01


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
