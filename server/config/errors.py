"""Config errors: all of them at once, each with its path, a remedy and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from artifacts.protocol import FieldError
from server.errors import ServerError


class ConfigError(ServerError):
    """One or more fields are wrong; ``str()`` shows them all."""

    code = "config"

    def __init__(
        self, source: str, errors: Sequence[FieldError], content: Mapping[str, Any] | None = None
    ) -> None:
        self.source = source
        self.errors = tuple(errors)
        # What was read, so that chains can be judged too and all errors be shown at once.
        self.content = dict(content or {})
        super().__init__(render(source, self.errors))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The valid name that a misspelt one most likely meant."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def render(source: str, errors: Sequence[FieldError]) -> str:
    """One line per error under a heading that names the source."""
    lines = [f"{source}: {len(errors)} error{'s' if len(errors) != 1 else ''}"]
    lines.extend(f"  {told(error)}" for error in errors)
    return "\n".join(lines)


def told(error: FieldError) -> str:
    """One error with its path, the name that was likely meant, and the remedy."""
    parts = [f"{error.path}: {error.message.rstrip('.')}." if error.path else error.message]
    if error.nearest:
        parts.append(f"Did you mean {error.nearest!r}?")
    if error.remedy:
        parts.append(error.remedy)
    return " ".join(parts)
