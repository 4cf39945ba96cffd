"""Chains and other values that callers send as JSON in a text field."""

from __future__ import annotations

from typing import Any

from server import json_text
from server.errors import InvalidRequestError

_LONGEST = 64 << 10


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
    return json_text.read_json(field, text)
