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
from server.search.examples import example_trials
from server.search.notation import CHOICE_KEY, check_choice, read_value
from server.search.values import Params, Trial, label_of

NONE = "none"
VARIANT_PARAM = "variant"
MOST_PARAMS = 200


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a trial drew: the variant whose space it is from, and its value in a config."""

    variant: str
    chain: tuple[Any, ...]
    rest: Mapping[str, Any]

    @property
    def value(self) -> Any:
        """The variant as a config has it."""
        return {**self.rest, "chain": list(self.chain)} if self.rest else list(self.chain)


@dataclass(frozen=True, slots=True)
class Space:
    """The spaces of all variants that have one; a trial draws the variant first.

    Attributes:
        chains: By variant.
        rest: What else the config says of each variant, beside its chain.
    """

    chains: Mapping[str, ChainSpace]
    rest: Mapping[str, Mapping[str, Any]]

    def draw(self, trial: Trial) -> Drawn:
        """Give a variant without anything open."""
        names = list(self.chains)
        name = names[0] if len(names) == 1 else trial.suggest_categorical(VARIANT_PARAM, names)
        return Drawn(name, tuple(self.chains[name].draw(trial)), self.rest.get(name, {}))

    def nearest(self, wanted: Sequence[Any]) -> list[Params]:
        """The points nearest to a chain, one per variant that has anything of it."""
        points = []
        for name, chain in self.chains.items():
            params: Params = {} if len(self.chains) == 1 else {VARIANT_PARAM: name}
            score, _ = chain.match(wanted, params)
            if score > 0 or not wanted:
                points.append(params)
        return points

    def size(self) -> float:
        """How many different points; infinite with floats in it."""
        return sum(chain.size() for chain in self.chains.values())

    def examples(self) -> list[Drawn]:
        """Some points in which every option and every bound occurs."""
        seen: dict[str, Drawn] = {}
        for trial in example_trials():
            drawn = self.draw(trial)
            seen.setdefault(label_of([drawn.variant, drawn.chain]), drawn)
        return list(seen.values())


def read_spaces(variants: Mapping[str, Any]) -> tuple[Space, list[FieldError]]:
    """Find the variants that have something open; the others are left out.

    Gives the spaces and everything that is wrong with how they are written.
    """
    errors: list[FieldError] = []
    chains: dict[str, ChainSpace] = {}
    rest: dict[str, dict[str, Any]] = {}
    for name, value in variants.items():
        before = len(errors)
        chain = _read_variant(str(name), value, errors)
        if chain is None:
            continue
        if any(True for _ in chain.names()) or len(errors) > before:
            chains[str(name)] = chain
            if isinstance(value, Mapping):
                rest[str(name)] = {key: one for key, one in value.items() if key != "chain"}
        if (count := sum(1 for _ in chain.names())) > MOST_PARAMS:
            errors.append(
                FieldError(
                    path=f"variants.{name}",
                    message=f"{count} things are left open, more than {MOST_PARAMS}",
                    remedy="Fix some of them.",
                )
            )
    return Space(chains, rest), errors


def split_open(variants: Mapping[str, Any]) -> tuple[dict[str, Any], list[FieldError]]:
    """The variants without anything open, and an error for each of the others.

    For whoever needs one chain per variant.
    """
    space, errors = read_spaces(variants)
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
    settled = {str(name): value for name, value in variants.items() if name not in space.chains}
    return settled, errors


def _read_variant(name: str, value: Any, errors: list[FieldError]) -> ChainSpace | None:
    """Read a variant; None where it is no chain, which is the optimizer's to refuse."""
    items = value.get("chain") if isinstance(value, Mapping) else value
    if not isinstance(items, (list, tuple)):
        return None
    return _read_chain(items, f"{name}.chain", errors)


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
