"""What a search leaves behind: a config that ``serve`` takes, a JSON file of all trials, a table.

Owns their form and the sentence that says whether the search was worth it. Knows nothing of how
the figures came about.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from server.config.fields import Config
from server.errors import ServerError
from server.search.finals import SURE_ROUNDS, Contender, Verdict
from server.search.objectives import OBJECTIVES, Objective
from server.search.records import Record

if TYPE_CHECKING:
    from rich.table import Table

MARK = "# Written by `inference-unlimited search`"
_JSON_MARK = '{\n "study": '
_INDENT = 2
_QUIET_CORES = 0.1  # of others' work: more than this and a speed says little


class OutError(ServerError):
    """The report cannot be written."""

    code = "out"


def json_beside(out: Path) -> Path:
    """Where all trials go."""
    return out.with_suffix(".json")


def check_out(out: Path) -> None:
    """Refuse early what would be refused after hours.

    Raises:
        OutError: The file is somebody's, or cannot be written.
    """
    if out.suffix not in {".yaml", ".yml"}:
        raise OutError(f"{out} is no YAML file.", remedy="Name one that ends in .yaml.")
    for path, mark in ((out, MARK), (json_beside(out), _JSON_MARK)):
        try:
            is_foreign = path.exists() and not path.read_text(encoding="utf-8").startswith(mark)
        except (OSError, UnicodeDecodeError):
            is_foreign = True
        if is_foreign:
            raise OutError(
                f"{path} is there already, and no search has written it.",
                remedy="Name another file with --out.",
            )
    if not os.access(out.parent, os.W_OK):
        raise OutError(
            f"{out.parent} is no folder that can be written.", remedy="Name another with --out."
        )


def config_text(config: Config, verdict: Verdict, objectives: Sequence[Objective]) -> str:
    """A config with the hand-written variants and those found that are on the front."""
    written = [
        one for one in verdict.contenders if one.is_known or one.name in verdict.front
    ] or list(verdict.contenders)
    content = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    content.pop("search", None)
    content.pop("variants", None)
    traffic = content.pop("traffic", {})
    kept = {one.name: traffic[one.name] for one in written if one.name in traffic}
    if any(kept.values()):
        content["traffic"] = kept
    store = Path(config.store).expanduser()
    lines = [
        f"{MARK}, with the figures that it measured on this machine.",
        *(f"# {line}" for line in sentences(verdict, objectives)),
        _yaml(content | {"store": str(store)}),
        "variants:",
    ]
    for one in written:
        budget = _own_budget(config, one)
        value: Any = [_plain(stage) for stage in one.chain]
        if budget:
            value = {"budget": budget, "chain": value}
        lines += [f"  # {_figures(one)}", _indented(_yaml({one.name: value}))]
    return "\n".join(lines) + "\n"


def json_text(
    verdict: Verdict | None, records: Sequence[Record], *, study: str, ending: str
) -> str:
    """Everything that the search knows, for whoever wants to look closer."""
    content: dict[str, Any] = {
        "study": study,
        "ending": ending,
        "trials": [record.as_json() for record in records],
    }
    if verdict is not None:
        content |= {
            "front": list(verdict.front),
            "added": list(verdict.added),
            "noise": dict(verdict.noise),
            "sure": verdict.is_sure,
            "contenders": [
                {
                    "name": one.name,
                    "variant": one.variant,
                    "chain": list(one.chain),
                    "trial": one.trial,
                    "hand_written": one.is_known,
                    "within_budget": one.is_within,
                    "measures": dict(one.measures),
                    "rounds": [dict(measures) for measures in one.rounds],
                }
                for one in verdict.contenders
            ],
        }
    return json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n"


def table(verdict: Verdict, objectives: Sequence[Objective]) -> Table:
    """The contenders side by side."""
    from rich.table import Table

    drawn = Table("variant", *(one.title for one in objectives), "front")
    for one in verdict.contenders:
        place = "yes" if one.name in verdict.front else "no"
        if one.name in verdict.added:
            place = "new"
        drawn.add_row(
            one.name,
            *(objective.show(one.measures) for objective in objectives),
            place if one.is_within else "over budget",
        )
    return drawn


def sentences(verdict: Verdict, objectives: Sequence[Objective]) -> list[str]:
    """Whether the search was worth it, and how sure that is."""
    over = ", ".join(one.name.value for one in objectives)
    said = [_worth(verdict, over), *_how_sure(verdict)]
    busiest = max((one.measures.get("others_cores", 0.0) for one in verdict.contenders), default=0)
    if busiest > _QUIET_CORES:
        said.append(
            f"Other processes used up to {busiest:.1f} cores meanwhile: measure again on a quiet "
            "machine before relying on any of the speeds."
        )
    return said


def _worth(verdict: Verdict, over: str) -> str:
    known = [one for one in verdict.contenders if one.is_known and one.is_within]
    found = [one for one in verdict.contenders if not one.is_known]
    if not found:
        return "The search found nothing that keeps to the budget and is on the front."
    if not known:
        return (
            f"There is no hand-written variant to compare with. On the front over {over}: "
            f"{', '.join(verdict.front)}."
        )
    if not verdict.added:
        return (
            f"The search adds nothing to the Pareto front of the hand-written variants over {over} "
            "that is beyond chance."
        )
    names = ", ".join(verdict.added)
    if not verdict.is_sure:
        return (
            f"By the trials' own figures {names} would be new on the Pareto front over {over}; "
            "that is not confirmed."
        )
    return (
        f"The search adds {names} to the Pareto front of the hand-written variants over {over}: "
        "against each of those it is better in some respect, beyond chance."
    )


def _how_sure(verdict: Verdict) -> list[str]:
    if not verdict.is_sure:
        rounds = f"{SURE_ROUNDS} rounds taken in turns"
        return [f"Timed figures are not of {rounds}: small differences mean nothing."]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in verdict.noise.items())
    if not shares:
        return []
    return [f"Timed figures are medians of rounds taken in turns, which differed by: {shares}."]


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        OutError: It cannot be written.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise OutError(
            f"{path} cannot be written ({error.strerror}).",
            remedy="Start again with another --out: what was measured is kept.",
        ) from error


def _figures(one: Contender) -> str:
    shown = [
        f"{objective.title} {objective.show(one.measures)}"
        for objective in OBJECTIVES.values()
        if objective.measure in one.measures
    ]
    origin = "hand-written" if one.is_known else f"found by trial {one.trial}"
    return f"{origin}: {', '.join(shown) or 'not measured'}"


def _own_budget(config: Config, one: Contender) -> dict[str, Any]:
    section = config.variants.get(one.variant)
    if section is None or section.budget is None:
        return {}
    # None lifts a limit of the config's own budget, so it is written too.
    return section.budget.model_dump(mode="json", exclude_unset=True)


def _plain(stage: Any) -> Any:
    """As YAML writes it: JSON's kinds only."""
    return json.loads(json.dumps(stage))


def _yaml(content: Any) -> str:
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)).rstrip("\n")


def _indented(text: str) -> str:
    return "\n".join(f"{' ' * _INDENT}{line}" for line in text.splitlines())
