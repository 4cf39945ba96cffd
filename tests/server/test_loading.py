"""What is opened at once, the memory a cache may reserve, and whose drafts fit a variant."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts.errors import CorruptArtifactError, SessionError
from artifacts.runtime import Threads
from server.drafts import DraftMethod, Drafts
from server.loading import LoadSettings, _check_drafter, _kv_budget_tokens, load

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


class Opened:
    """A session that does nothing, and whose memory may be watched."""

    slots, max_length, vocab_size, kv_bytes_per_token = 4, 100, 10, 1

    def step(self, rows: object) -> None:
        """Compute nothing."""

    def release(self, slot: int) -> None:
        """Hold nothing."""


def stored(vocab_size: int = 10, tokenizer: str = "own") -> Any:
    graph = SimpleNamespace(max_length=100, vocab_size=vocab_size)
    file = SimpleNamespace(name="tokenizer.json", sha256=tokenizer)
    return SimpleNamespace(
        manifest=SimpleNamespace(graph=graph, files=[file], size_bytes=0), path=Path
    )


DRAFTS = Drafts(DraftMethod.DRAFT, "small", 4)


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plant what is done instead of opening a session and a tokenizer."""

    def plant(session: Callable[[], object], tokenizer: Callable[[], object]) -> None:
        monkeypatch.setattr("server.loading.open_session", lambda *_, **__: session())
        monkeypatch.setattr("server.loading.Tokenizer.load", lambda _: tokenizer())

    return plant


@pytest.mark.parametrize("with_drafter", [False, True])
def test_sessions_and_tokenizer_are_opened_at_once(
    opening: Callable[..., None], *, with_drafter: bool
) -> None:
    """Each waits for the others: one after the other they would never end."""
    meeting, tokenizer = threading.Barrier(3 if with_drafter else 2), object()

    def meet() -> Opened:
        meeting.wait(10)
        return Opened()

    def meet_too() -> object:
        meeting.wait(10)
        return tokenizer

    opening(meet, meet_too)
    drafted: dict[str, Any] = {"drafts": DRAFTS, "drafter": stored()} if with_drafter else {}
    loaded = load(stored(), settings(), **drafted)
    assert loaded.tokenizer is tokenizer
    assert isinstance(loaded.session, Opened)
    assert (loaded.drafting is not None) == with_drafter


def test_either_s_error_is_told_as_it_is(opening: Callable[..., None]) -> None:
    """Who brings variants up decides by its type; a session's comes first."""

    def no_session() -> object:
        raise SessionError("no session")

    def no_tokenizer() -> object:
        raise CorruptArtifactError("no tokenizer")

    opening(Opened, no_tokenizer)
    with pytest.raises(CorruptArtifactError, match="no tokenizer"):
        load(stored(), settings())
    opening(no_session, object)
    with pytest.raises(SessionError, match="no session"):
        load(stored(), settings())
    opening(no_session, no_tokenizer)
    with pytest.raises(SessionError, match="no session"):
        load(stored(), settings())


def test_a_drafter_of_other_tokens_is_refused_before_anything_is_opened(
    opening: Callable[..., None],
) -> None:
    """Its weights are packed for nothing otherwise."""
    opened = []
    opening(lambda: opened.append(True), object)
    with pytest.raises(SessionError, match=r"speculation\.variant"):
        load(stored(), settings(), drafts=DRAFTS, drafter=stored(vocab_size=11))
    assert not opened


@pytest.mark.parametrize(("vocab_size", "tokenizer"), [(100, "other"), (101, "own")])
def test_drafts_of_other_tokens_are_refused(vocab_size: int, tokenizer: str) -> None:
    """A guess is a token's number, and must mean the same to both."""
    _check_drafter(stored(100, "own"), stored(100, "own"))
    with pytest.raises(SessionError, match=r"^speculation\.variant: the tokens .* same tokenizer"):
        _check_drafter(stored(100, "own"), stored(vocab_size, tokenizer))


def test_what_loading_freed_is_given_back(
    opening: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, when all is open: before it, there is nothing to give."""
    done: list[str] = []

    def opened() -> Opened:
        done.append("opened")
        return Opened()

    opening(opened, object)
    monkeypatch.setattr("artifacts.machine.give_memory_back", lambda: done.append("given back"))
    load(stored(), settings())
    assert done == ["opened", "given back"]
