"""What an upgrade has made anew, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from optimizers import recipe


def _upgraded(monkeypatch: pytest.MonkeyPatch, library: str, name: Callable[[], str]) -> bool:
    """Whether another version of a library gives another name."""
    before, real = name(), recipe.version
    monkeypatch.setattr(
        "optimizers.recipe.version", lambda one: "0.1" if one == library else real(one)
    )
    return name() != before


@pytest.mark.parametrize("library", ["torch", "transformers", "safetensors", "onnxruntime"])
def test_an_export_is_made_and_verified_again_after_an_upgrade(
    monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    """A graph that one ONNX Runtime was seen to run rightly may run wrongly in the next."""
    assert _upgraded(monkeypatch, library, lambda: recipe.export_key("parent"))


@pytest.mark.parametrize("library", ["torch", "onnxruntime"])
def test_a_recipe_outlives_an_upgrade(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Finished artifacts are not orphaned by a new version of anything."""
    assert not _upgraded(monkeypatch, library, lambda: recipe.recipe_digest("revision", (), ""))
