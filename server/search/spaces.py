"""Spaces in a config's variants: any field of a stage, and which stages there are, may be open.

An item ``{choice: [stage, [stage, stage], none]}`` of a chain is one stage, several, or nothing;
what fields may be is in ``server.search.notation``. Owns finding the spaces, drawing a variant from
them, and the points that are nearest to a given chain. Knows nothing of which stages there are: a
chain that is drawn is judged by the optimizer like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artifacts.protocol import FieldError
from server.search.chains import Alternatives, ChainSpace, StageSpace
from server.search.examples import examples
from server.search.notation import CHOICE_KEY, check_choice, read_value
from server.search.values import Params, Trial

NONE = "none"
VARIANT_PARAM = "variant"
MOST_PARAMS = 200


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a trial drew.

    Attributes:
        variant: Whose space it is from.
        chain: A chain without anything open.
    """

    variant: str
    chain: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """The spaces of all variants that have one; a trial draws the variant first."""

    chains: Mapping[str, ChainSpace]

    def draw(self, trial: Trial) -> Drawn:
        """Give one chain."""
        names = list(self.chains)
        name = names[0] if len(names) == 1 else trial.suggest_categorical(VARIANT_PARAM, names)
        return Drawn(name, tuple(self.chains[name].draw(trial)))

    def nearest(self, wanted: Sequence[Any]) -> list[Params]:
        """The points nearest to a chain, one per variant that has anything of it."""
        points = []
        for name, chain in self.chains.items():
            params: Params = {} if len(self.chains) == 1 else {VARIANT_PARAM: name}
            score, _ = chain.match(wanted, params)
            if score > 0 or (not wanted and score == 0):  # nothing is wanted, and nothing is there
                points.append(params)
        return points

    def size(self) -> float:
        """How many different points; infinite with floats in it."""
        return sum(chain.size() for chain in self.chains.values())

    def examples(self) -> list[tuple[Drawn, Mapping[str, str]]]:
        """Some points in which every option and every bound occurs, with the options taken.

        In a small space they repeat themselves.
        """
        return [(self.draw(trial), trial.chosen) for trial in examples()]


def read_spaces(chains: Mapping[str, Any]) -> tuple[Space, list[FieldError]]:
    """Find the variants that have something open in their chain; the others are left out.

    Gives the spaces and everything that is wrong with how they are written. A chain that is no list
    is the optimizer's to refuse.
    """
    errors: list[FieldError] = []
    spaces: dict[str, ChainSpace] = {}
    for name, items in chains.items():
        if not isinstance(items, (list, tuple)):
            continue
        before = len(errors)
        space = _read_chain(items, f"{name}.chain", errors)
        count = sum(1 for _ in space.names())
        if count > MOST_PARAMS:
            errors.append(
                FieldError(
                    path=f"variants.{name}",
                    message=f"{count} things are left open, more than {MOST_PARAMS}",
                    remedy="Fix some of them.",
                )
            )
        if count or len(errors) > before:
            spaces[name] = space
    return Space(spaces), errors


def split_open(chains: Mapping[str, Any]) -> tuple[dict[str, Any], list[FieldError]]:
    """The chains without anything open, and an error for each of the others.

    For whoever needs one chain per variant.
    """
    space, errors = read_spaces(chains)
    for name, chain in space.chains.items():
        if (place := next(chain.names(), None)) is not None:
            errors.append(
                FieldError(
                    path=f"variants.{place}",
                    message=f"Variant {name!r} is a space of chains, not one chain",
                    remedy="Use `inference-unlimited search` to find the best of them, or settle "
                    "on one.",
                )
            )
    return {name: chain for name, chain in chains.items() if name not in space.chains}, errors


def _read_chain(items: Sequence[Any], name: str, errors: list[FieldError]) -> ChainSpace:
    return ChainSpace(
        tuple(_read_item(item, f"{name}[{index}]", errors) for index, item in enumerate(items))
    )


def _read_item(item: Any, name: str, errors: list[FieldError]) -> StageSpace | Alternatives:
    if isinstance(item, Mapping) and CHOICE_KEY in item:
        return _read_alternatives(item, name, errors)
    return StageSpace(read_value(item, f"variants.{name}", name, errors))


def _read_alternatives(
    item: Mapping[str, Any], name: str, errors: list[FieldError]
) -> Alternatives:
    if wrong := check_choice(item, f"variants.{name}"):
        errors += wrong
        return Alternatives(name, (), ())
    chains, labels = [], []
    for index, option in enumerate(item[CHOICE_KEY]):
        own = f"{name}.{CHOICE_KEY}[{index}]"
        stages = _stages(option)
        if isinstance(option, (list, tuple)):
            chains.append(_read_chain(stages, own, errors))
        else:  # one stage is no list, and its place has no index
            chains.append(ChainSpace(tuple(_read_item(stage, own, errors) for stage in stages)))
        label = "+".join(_label(stage) for stage in stages) or NONE
        labels.append(label if label not in labels else f"{label} [{index}]")
    return Alternatives(name, tuple(labels), tuple(chains))


def _stages(option: Any) -> list[Any]:
    """The items of an alternative."""
    if option is None or option == NONE:
        return []
    return list(option) if isinstance(option, (list, tuple)) else [option]


def _label(item: Any) -> str:
    """A stage in a word or two."""
    if isinstance(item, Mapping):
        if CHOICE_KEY in item:
            return CHOICE_KEY
        name, fields = next(iter(item.items()), ("", None))
        method = fields.get("method") if isinstance(fields, Mapping) else None
        return f"{name} {method}" if isinstance(method, str) else str(name)
    return str(item)
