"""From what a config says about a chain to stages, with every mistake found at once.

Owns the paths in error messages, the nearest valid names, and the order rules and warnings, which
read what each stage says of its own place. Knows nothing of where models come from, of how stages
work, or of any one stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from artifacts.protocol import FieldError
from optimizers.stage import Stage
from optimizers.stages import TABLE, Entry


@dataclass(frozen=True, slots=True)
class Chain:
    """A variant's stages, or what is wrong with them (then ``stages`` is not to be used)."""

    stages: tuple[Stage, ...]
    errors: tuple[FieldError, ...]


def parse_variant(name: str, value: Any) -> Chain:
    """Read a variant's list of stages."""
    path = f"variants.{name}"
    if value is None:
        value = []
    if not isinstance(value, (list, tuple)):
        error = FieldError(
            path=path,
            message=f"A variant is a list of stages, not {type(value).__name__}.",
            remedy="Write [] for the unchanged model, or [{stage: {field: value}}].",
        )
        return Chain((), (error,))
    return parse_chain(f"{path}.chain", value)


def parse_chain(path: str, items: Sequence[Any]) -> Chain:
    """Read a chain; the order rules are checked once every stage by itself is right."""
    stages: list[Stage] = []
    errors: list[FieldError] = []
    for index, item in enumerate(items):
        parsed = _parse_item(f"{path}[{index}]", item)
        if isinstance(parsed, Stage):
            stages.append(parsed)
        else:
            errors += parsed
    if not errors:
        errors += _order_errors(path, stages)
    return Chain(tuple(stages), tuple(errors))


def chain_warnings(stages: Sequence[Stage]) -> tuple[str, ...]:
    """What a chain in order still lacks: stages that would mend what others cost."""
    found = []
    for index, stage in enumerate(stages):
        later = [(other.name, other.label()) for other in stages[index + 1 :]]
        if stage.mended_by is not None and stage.mended_by not in later:
            name, label = stage.mended_by
            found.append(
                f"{_label(stage)} is not followed by {name} ({label}), which wins back much of "
                "what it costs."
            )
    return tuple(dict.fromkeys(found))


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """The choice that a misspelt word most likely means."""
    close = get_close_matches(word, choices, n=1, cutoff=0.5)
    return close[0] if close else None


def _parse_item(path: str, item: Any) -> Stage | list[FieldError]:
    if isinstance(item, str):
        item = {item: {}}
    if not isinstance(item, dict) or len(item) != 1:
        return [
            FieldError(
                path=path,
                message="An item of a chain is one stage with its fields.",
                remedy="Write {stage: {field: value}}.",
            )
        ]
    ((name, fields),) = item.items()
    entries = [entry for entry in TABLE if entry.name == name]
    if not entries:
        known = sorted({entry.name for entry in TABLE})
        return [
            FieldError(
                path=f"{path}.{name}",
                message=f"There is no stage {name!r}.",
                remedy=f"Stages: {', '.join(known)}.",
                nearest=nearest(str(name), known),
            )
        ]
    path = f"{path}.{name}"
    fields = {} if fields is None else fields
    if not isinstance(fields, dict):
        return [
            FieldError(
                path=path,
                message=f"The fields of a stage are a mapping, not {type(fields).__name__}.",
                remedy="Write {field: value}.",
            )
        ]
    entry = _select(path, fields, entries)
    if isinstance(entry, FieldError):
        return [entry]
    return _validate(path, fields, entry.load())


def _select(path: str, fields: dict[str, Any], entries: list[Entry]) -> Entry | FieldError:
    """Choose a stage's method: by ``method``, by a field named like it, or the default."""
    methods = [entry.method for entry in entries]
    if "method" in fields:
        chosen = [entry for entry in entries if entry.method == fields["method"]]
        if not chosen:
            return FieldError(
                path=f"{path}.method",
                message=f"There is no method {fields['method']!r}.",
                remedy=f"Methods: {', '.join(methods)}.",
                nearest=nearest(str(fields["method"]), methods),
            )
        return chosen[0]
    chosen = [entry for entry in entries if entry.method in fields]
    if len(chosen) == 1:
        return chosen[0]
    meant = [entry for entry in entries if entry.default or len(entries) == 1]
    if meant:
        return meant[0]
    return FieldError(
        path=f"{path}.method",
        message="The method is missing.",
        remedy=f"Methods: {', '.join(methods)}.",
    )


def _validate(path: str, fields: dict[str, Any], kind: type[Stage]) -> Stage | list[FieldError]:
    try:
        stage = kind.model_validate(fields)
    except ValidationError as error:
        names = list(kind.model_fields)
        return [_told(path, kind, names, detail) for detail in error.errors(include_url=False)]
    if (problem := stage.problem()) is not None:
        field, message, remedy = problem
        return [FieldError(path=f"{path}.{field}", message=message, remedy=remedy)]
    return stage


def _told(path: str, kind: type[Stage], names: list[str], detail: ErrorDetails) -> FieldError:
    field = str(detail["loc"][0]) if detail["loc"] else ""
    where = ".".join([path, *(str(part) for part in detail["loc"])])
    if detail["type"] == "extra_forbidden":
        return FieldError(
            path=where,
            message=f"{kind.name} has no field {field!r}.",
            remedy=f"Fields: {', '.join(names)}.",
            nearest=nearest(field, names),
        )
    about = kind.model_fields[field].description if field in kind.model_fields else None
    choices = str(detail.get("ctx", {}).get("expected", ""))
    listed = [part.strip(" '") for part in choices.replace(" or ", ",").split(",") if part]
    return FieldError(
        path=where,
        message=f"{detail['msg']}.",
        remedy=about or "",
        nearest=nearest(str(detail["input"]), listed) if listed else None,
    )


def _order_errors(path: str, stages: Sequence[Stage]) -> list[FieldError]:
    errors: list[FieldError] = []
    for index, stage in enumerate(stages):
        before = stages[:index]
        here = f"{path}[{index}].{stage.name}"
        if later := [other for other in before if _place(other) > _reach(stage)]:
            label = _label(later[0])
            errors.append(
                FieldError(
                    path=here,
                    message=f"{_label(stage)} comes after {label}: {stage.reason}.",
                    remedy=f"Move {_label(stage)} before {label}.",
                )
            )
        if stage.needs and not any(other.name in stage.needs for other in before):
            errors.append(
                FieldError(
                    path=here,
                    message=f"{_label(stage)} needs a {' or '.join(stage.needs)} before it.",
                    remedy=f"Put {_label(stage)} behind one, or leave it out.",
                )
            )
        group = [other for other in before if stage.group and other.group == stage.group]
        if group:
            errors.append(
                FieldError(
                    path=here,
                    message=f"{_label(stage)} cannot be in a chain that has {_label(group[0])}.",
                    remedy="Keep one of the two.",
                )
            )
    return errors


def _place(stage: Stage) -> tuple[bool, int]:
    """Where a stage belongs: the export ends the torch form, whatever the ranks are."""
    return stage.form == "onnx", stage.rank


def _reach(stage: Stage) -> tuple[bool, int]:
    """The last place that it may come after."""
    return stage.form == "onnx", stage.rank if stage.reach is None else stage.reach


def _label(stage: Stage) -> str:
    """A stage as messages tell it: one name can stand for several methods."""
    return f"{stage.name} ({stage.label()})" if stage.label() else stage.name
