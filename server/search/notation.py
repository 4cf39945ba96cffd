"""How a space is written in a config: ``{low, high, log, step}`` and ``{choice: [...]}``.

Owns the reading of a field's value and every complaint about a space in it. Mappings and lists that
are no spaces are looked into, since fields may nest. Knows nothing of chains or of which fields a
stage has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from artifacts.protocol import FieldError
from server.config.errors import nearest
from server.search.values import Fields, Fixed, Items, Options, Range, Value, is_number, label_of

RANGE_KEYS = ("low", "high", "log", "step")
CHOICE_KEY = "choice"
MOST_OPTIONS = 256


def read_value(content: Any, path: str, name: str, errors: list[FieldError]) -> Value:
    """Read what a field is set to; what is wrong with a space in it is added to ``errors``.

    Args:
        content: As the config has it.
        path: Of the field, for messages.
        name: Of the field, for what is drawn.
        errors: Grows.
    """
    if isinstance(content, Mapping):
        if CHOICE_KEY in content:
            return _read_options(content, path, name, errors)
        if "low" in content or "high" in content:
            return _read_range(content, path, name, errors)
        fields = tuple(
            (str(key), read_value(value, f"{path}.{key}", f"{name}.{key}", errors))
            for key, value in content.items()
        )
        varies = any(not isinstance(value, Fixed) for _, value in fields)
        return Fields(fields) if varies else Fixed(content)
    if isinstance(content, (list, tuple)):
        items = tuple(
            read_value(value, f"{path}[{index}]", f"{name}[{index}]", errors)
            for index, value in enumerate(content)
        )
        return (
            Items(items) if any(not isinstance(item, Fixed) for item in items) else Fixed(content)
        )
    return Fixed(content)


def check_choice(content: Mapping[str, Any], path: str) -> list[FieldError]:
    """What is wrong with ``{choice: [...]}`` itself."""
    errors = [
        FieldError(
            path=f"{path}.{key}",
            message="A choice has no such key",
            remedy="Write {choice: [...]} and nothing beside it.",
        )
        for key in content
        if key != CHOICE_KEY
    ]
    options = content[CHOICE_KEY]
    if not isinstance(options, (list, tuple)) or not options:
        errors.append(
            FieldError(
                path=f"{path}.{CHOICE_KEY}",
                message="A choice needs a list of at least one option",
                remedy="Write {choice: [32, 64]}, or the value itself.",
            )
        )
    elif len(options) > MOST_OPTIONS:
        errors.append(
            FieldError(
                path=f"{path}.{CHOICE_KEY}",
                message=f"{len(options)} options are more than {MOST_OPTIONS}",
                remedy="Use {low, high, step} for numbers.",
            )
        )
    return errors


def _read_options(
    content: Mapping[str, Any], path: str, name: str, errors: list[FieldError]
) -> Value:
    if wrong := check_choice(content, path):
        errors += wrong
        return Fixed(None)
    values = tuple(content[CHOICE_KEY])
    labels = [label_of(value) for value in values]
    for index, value in enumerate(values):
        where = f"{path}.{CHOICE_KEY}[{index}]"
        if labels[index] in labels[:index]:
            errors.append(
                FieldError(path=where, message="The same option is there twice", remedy="Drop it.")
            )
        if isinstance(value, Mapping) and {CHOICE_KEY, "low", "high"} & set(value):
            errors.append(
                FieldError(
                    path=where,
                    message="An option of a value cannot be a space itself",
                    remedy="List the values; whole stages are chosen as items of the chain.",
                )
            )
    return Options(name, values)


def _read_range(
    content: Mapping[str, Any], path: str, name: str, errors: list[FieldError]
) -> Value:
    before = len(errors)
    errors += [
        FieldError(
            path=f"{path}.{key}",
            message="A range has no such key",
            remedy=f"Keys of a range: {', '.join(RANGE_KEYS)}.",
            nearest=nearest(str(key), RANGE_KEYS),
        )
        for key in content
        if key not in RANGE_KEYS
    ]
    numbers: dict[str, int | float] = {}
    for key in ("low", "high", "step"):
        if key == "step" and content.get(key) is None:
            continue
        number = _number(content.get(key))
        if number is None:
            given = "is missing" if key not in content else f"is no number: {content[key]!r}"
            errors.append(
                FieldError(
                    path=f"{path}.{key}",
                    message=f"The bound {given}" if key != "step" else f"The step {given}",
                    remedy="Write {low: 0.1, high: 0.5}; both bounds are included.",
                )
            )
        else:
            numbers[key] = number
    is_log = content.get("log", False)
    if not isinstance(is_log, bool):
        errors.append(
            FieldError(path=f"{path}.log", message="Is true or false", remedy="Write log: true.")
        )
    if len(errors) > before:
        return Fixed(None)
    if (wrong := _problem(numbers, is_log=is_log)) is not None:
        key, message, remedy = wrong
        errors.append(FieldError(path=f"{path}.{key}", message=message, remedy=remedy))
        return Fixed(None)
    low, high, step = numbers["low"], numbers["high"], numbers.get("step")
    is_int = all(isinstance(number, int) for number in numbers.values())
    return Range(name, low, high, step, is_log=is_log, is_int=is_int)


def _problem(numbers: Mapping[str, float], *, is_log: bool) -> tuple[str, str, str] | None:
    """What is wrong between the numbers of a range: key, message, remedy."""
    low, high, step = numbers["low"], numbers["high"], numbers.get("step")
    if low > high:
        return "low", f"{low:g} is above high, {high:g}", "Swap them."
    if is_log and low <= 0:
        return "low", f"Must be above 0 where log is true, not {low:g}", "Raise it, or drop log."
    return None if step is None else _problem_of_step(low, high, step, is_log=is_log)


def _problem_of_step(
    low: float, high: float, step: float, *, is_log: bool
) -> tuple[str, str, str] | None:
    if is_log:
        return "step", "A range with log has no step", "Drop one of the two."
    if step <= 0:
        return "step", f"Must be above 0, not {step:g}", "Give the distance between two values."
    count = (high - low) / step
    if abs(count - round(count)) > 1e-6:
        last = low + math.floor(count) * step
        return "high", f"{high:g} is not low plus a multiple of step", f"Write high: {last:g}."
    return None


def _number(value: Any) -> int | float | None:
    """A finite number; YAML takes ``1e-5``, which lacks a dot, for text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if is_number(value) and math.isfinite(value) else None
