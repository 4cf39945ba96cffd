"""JSON that callers send, read strictly: valid UTF-8, no lone surrogates, bounded nesting.

What passes can be written again, as text and as JSON, by whatever handles it later. Knows nothing
of what the values mean.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from server.errors import InvalidRequestError

DEEPEST = 100
"""Arrays and objects within each other; Python's own walks over values end at some 300."""


def read_json(field: str, text: str | bytes) -> Any:
    """A JSON value.

    Args:
        field: What errors name.
        text: JSON; bytes are UTF-8.

    Raises:
        InvalidRequestError: It is none, or is nested too deeply.
    """
    try:
        written = text if isinstance(text, str) else text.decode()
        value = json.loads(written, parse_constant=_refuse_constant)
        # Half of a pair of surrogates can be written in JSON, and is no text.
        if "\\ud" in written.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        _refuse_depth(field)
    except ValueError as error:
        raise InvalidRequestError(field, f"is no valid JSON: {_why(error)}", "correct it") from None
    # Most texts have fewer brackets than may lie within each other.
    if written.count("[") + written.count("{") > DEEPEST and _is_deeper(value):
        _refuse_depth(field)
    return value


def _is_deeper(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        containers = [one for one in level if isinstance(one, (list, dict))]
        if not containers:
            return False
        level = [
            inner
            for one in containers
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return True


def _refuse_depth(field: str) -> NoReturn:
    problem = f"is nested more than {DEEPEST} levels deep"
    raise InvalidRequestError(field, problem, "make it flatter")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is none of its numbers")


def _why(error: ValueError) -> str:
    """Without what was sent, which may be anything."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "a text has half of a surrogate pair"
    return str(error)
