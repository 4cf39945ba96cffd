"""Chains and other values that callers send as JSON in a text field."""

from __future__ import annotations

import json
from typing import Any

from server.errors import InvalidRequestError

_LONGEST = 64 << 10
_DEEPEST = 32


def read_chain(text: str) -> list[Any] | None:
    """A chain of stages; None for an empty text.

    Raises:
        InvalidRequestError: It is something else.
    """
    if not text:
        return None
    chain = read_json("chain_json", text)
    if not isinstance(chain, list):
        raise InvalidRequestError("chain_json", "is no array", "send a JSON array of stages")
    return chain


def read_json(field: str, text: str) -> Any:
    """A JSON value of bounded size.

    Raises:
        InvalidRequestError: It is none, or too large.
    """
    if len(text) > _LONGEST:
        raise InvalidRequestError(field, f"has more than {_LONGEST} characters", "make it smaller")
    try:
        value = json.loads(text)
        # Numbers that are none and halves of characters are read, but not written again.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(field, f"is no valid JSON: {error}", "correct it") from error
    if _is_deeper(value, _DEEPEST):
        raise InvalidRequestError(field, f"is nested more than {_DEEPEST} deep", "make it flatter")
    return value


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        containers = [one for one in level if isinstance(one, (dict, list))]
        level = [
            inner
            for one in containers
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True
