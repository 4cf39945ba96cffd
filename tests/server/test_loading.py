"""How much of the memory a variant's cache may reserve, and whose drafts fit a variant."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts.errors import SessionError
from artifacts.runtime import Threads
from server.loading import LoadSettings, _check_drafter, _kv_budget_tokens

SESSION: Any = SimpleNamespace(slots=4, max_length=100, kv_bytes_per_token=1000)


def settings(kv_bytes: int | None = None, memory_bytes: int = 1_000_000) -> LoadSettings:
    return LoadSettings(
        slots=4,
        max_length=None,
        kv_bytes=kv_bytes,
        memory_bytes=memory_bytes,
        max_waiting=1,
        threads=Threads(count=1),
    )


def test_a_configured_size_is_kept() -> None:
    """``engine.kv_bytes`` is what is reserved at most."""
    assert _kv_budget_tokens([SESSION], 0, settings(kv_bytes=200_500)) == 200


def test_by_default_half_of_what_weights_leave() -> None:
    """Activations and the system need the rest."""
    assert _kv_budget_tokens([SESSION], 400_000, settings(memory_bytes=1_000_000)) == 300


def test_a_drafter_s_cache_grows_beside_the_variant_s() -> None:
    """A token takes memory of both."""
    small: Any = SimpleNamespace(slots=4, max_length=100, kv_bytes_per_token=250)
    assert _kv_budget_tokens([SESSION, small], 0, settings(kv_bytes=200_500)) == 160


def test_what_was_loaded_meanwhile_leaves_less() -> None:
    """A variant that is loaded later finds what the others have left, not what there was once."""
    scarce = replace(settings(memory_bytes=1_000_000), available_bytes=lambda: 100_000)
    assert _kv_budget_tokens([SESSION], 400_000, scarce) == 50
    ample = replace(scarce, available_bytes=lambda: 1 << 40)
    assert _kv_budget_tokens([SESSION], 400_000, ample) == 300


def test_never_more_than_all_slots_can_hold() -> None:
    """A large machine changes nothing."""
    assert _kv_budget_tokens([SESSION], 0, settings(memory_bytes=1 << 40)) == 400


@pytest.mark.parametrize("size_bytes", [995_000, 2_000_000])
def test_too_little_memory_names_the_field(size_bytes: int) -> None:
    """A cache that holds no request is refused at the start, not at each request."""
    with pytest.raises(SessionError, match=r"engine\.kv_bytes"):
        _kv_budget_tokens([SESSION], size_bytes, settings())


def stored(vocab_size: int, tokenizer: str) -> Any:
    files = [
        SimpleNamespace(name="model.onnx", sha256=f"model of {vocab_size}"),
        SimpleNamespace(name="tokenizer.json", sha256=tokenizer),
    ]
    graph = SimpleNamespace(vocab_size=vocab_size)
    return SimpleNamespace(manifest=SimpleNamespace(graph=graph, files=files))


@pytest.mark.parametrize(("vocab_size", "tokenizer"), [(100, "other"), (101, "own")])
def test_drafts_of_other_tokens_are_refused(vocab_size: int, tokenizer: str) -> None:
    """A guess is a token's number, and must mean the same to both."""
    _check_drafter(stored(100, "own"), stored(100, "own"))
    with pytest.raises(SessionError, match=r"^speculation\.variant: the tokens .* same tokenizer"):
        _check_drafter(stored(100, "own"), stored(vocab_size, tokenizer))
