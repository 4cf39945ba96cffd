"""What a chain that is sent to a running server may name.

Owns the walk through a chain and the decision: models by their hub id, files and folders by where
they lie once every link and every ``..`` is followed. Knows nothing of what a stage does with a
name; whatever could be one is looked at, in every field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.errors import InvalidRequestError

_DEMO = "demo"
_MODEL_KEYS = frozenset({"model", "substitute"})
_SHOWN = 128


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be named.

    Attributes:
        models: Hub ids.
        roots: Folders below which models and files may lie.
    """

    models: frozenset[str] = frozenset()
    roots: tuple[Path, ...] = ()

    def check(self, chain: Sequence[Any]) -> None:
        """Look at all that a chain names.

        Raises:
            InvalidRequestError: With the first name that lies outside.
        """
        for name in _names(chain):
            if not self.permits(name):
                raise InvalidRequestError(
                    "chain_json",
                    f"names {name[:_SHOWN]!r}, which lies outside what may be named",
                    "add it to admin.models or admin.roots in the config",
                )

    def permits(self, name: str) -> bool:
        """Whether a model or a file may be named.

        What does not exist is refused even where it would lie below a root: a relative path that
        is no folder is taken for a hub id by whoever looks for a model.
        """
        if name in self.models or name == _DEMO:
            return True
        try:
            path = Path(name).expanduser().resolve(strict=True)
            return any(path.is_relative_to(root.expanduser().resolve()) for root in self.roots)
        except (OSError, ValueError, RuntimeError):  # not there, not a path, or a loop of links
            return False


def _names(value: Any, key: str = "") -> Iterator[str]:
    """Every text in a JSON value that names a model, or could name a folder or a file."""
    if isinstance(value, str):
        looks_like_a_path = "/" in value or "\\" in value or value.startswith(("~", "."))
        if key in _MODEL_KEYS or looks_like_a_path:
            yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _names(name)
            yield from _names(one, name)
    elif isinstance(value, Sequence):
        for one in value:
            yield from _names(one, key)
