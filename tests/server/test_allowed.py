"""What chains from outside may name: below the roots, whatever way it is written, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.allowed import Allowed
from server.errors import InvalidRequestError


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a model in it, beside a secret; the working directory is the root."""
    root = tmp_path / "root"
    (root / "model").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "kept").symlink_to(root / "model")
    (root / "loop").symlink_to(root / "loop")
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(tmp_path))
    return root


@pytest.fixture
def allowed(inside: Path) -> Allowed:
    return Allowed(frozenset({"org/model"}), (inside,))


def test_what_lies_below_a_root_may_be_named(allowed: Allowed, inside: Path) -> None:
    """By its path, by a relative one, by the home directory, and by a link that stays inside."""
    for name in (
        str(inside / "model"),
        "model",
        "./model",
        "~/root/model",
        "kept",
        f"{inside}/model/../model",
        str(inside),
        "demo",
        "org/model",
    ):
        assert allowed.permits(name), name


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "model/../../secret",
        "link",
        "loop",
        "~/secret",
        "~",
        "~nobody-of-this-name/model",
        "/etc/passwd",
        "/",
        "other/model",
        "model/none",
        "nul\0byte",
        "long" * 2000,
        "org/model2",
        "ORG/MODEL",
    ],
)
def test_nothing_else_may(allowed: Allowed, name: str) -> None:
    """Dots, links, homes, hub ids, and what is no path at all."""
    assert not allowed.permits(name)


def test_what_does_not_exist_below_a_root_is_no_way_to_the_hub(allowed: Allowed) -> None:
    """``evil/model`` would lie below the working directory, but is looked for on the hub."""
    assert not allowed.permits("evil/model")


def test_without_roots_only_the_demo_may_be_named(inside: Path) -> None:
    """The default: chains bring nothing in."""
    nothing = Allowed()
    assert nothing.permits("demo")
    assert not nothing.permits(str(inside / "model"))


@pytest.mark.parametrize(
    "chain",
    [
        [{"distill": {"substitute": "gpt2"}}],
        [{"distill": {"substitute": "evil/model"}}],
        [{"quantize": {"method": "../secret"}}],
        [{"quantize": {"bits": 4, "deep": [{"deeper": ["~/secret"]}]}}],
        [{"/etc/passwd": {}}],
        [{"quantize": {"/etc/passwd": 4}}],
        ["/etc/passwd"],
        [["..\\secret"]],
    ],
)
def test_every_field_of_a_chain_is_looked_at(allowed: Allowed, chain: list[Any]) -> None:
    """However deep, as a value or as a key."""
    with pytest.raises(InvalidRequestError, match="lies outside what may be named"):
        allowed.check(chain)


def test_a_chain_without_names_passes(allowed: Allowed) -> None:
    """Numbers, methods and what may be named."""
    allowed.check(
        [
            {"distill": {"substitute": "org/model"}},
            {"quantize": {"method": "weight_only", "bits": 4, "symmetric": True, "x": None}},
            "quantize",
        ]
    )
