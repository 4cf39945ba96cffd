"""The front measured again, in turns, before anybody is told of it.

A trial's figures were taken minutes or days apart from another's, and each only once. Here all that
may be reported are timed in rounds, in an order that rotates, so that whatever changes about the
machine meets all of them. Owns the choice of who is measured, the medians, and what is on the front
beyond chance. Knows nothing of how a figure is taken.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from server.comparison.order import order
from server.errors import ServerError
from server.search.front import front, spread
from server.search.objectives import Measures, Objective
from server.search.records import Kind, Known, Record

_log = structlog.get_logger(__name__)

SLIGHT = 0.01
"""Figures that are closer than this share are too close to matter."""
SURE_ROUNDS = 3
"""With fewer rounds there is no telling what chance has done."""

Time = Callable[["Contender", int], Awaitable[Measures]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A variant that may be on the front.

    Attributes:
        name: What it is called in the report.
        variant: Whose budget and place in the config it has.
        chain: As a config has it.
        measures: Figures by name: the median of the rounds, or the trial's own.
        rounds: The figures of each round; empty while it was not measured in turns.
        is_known: Hand-written; the others were found.
        is_within: Whether it keeps to its budget.
        trial: Number of the trial that found it.
    """

    name: str
    variant: str
    chain: tuple[Any, ...]
    measures: Measures
    rounds: tuple[Measures, ...] = ()
    is_known: bool = False
    is_within: bool = True
    trial: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a search has come to.

    Attributes:
        contenders: All that were compared, hand-written ones first.
        front: Names of those that no other is better than in every respect.
        added: Names of those found that add to the front of the hand-written ones: against each
            of these they are better in at least one respect, beyond chance where that is sure.
        noise: By timed objective: by which share figures of one variant differ between rounds.
        is_sure: Whether the figures were taken in turns, and often enough.
    """

    contenders: tuple[Contender, ...]
    front: tuple[str, ...]
    added: tuple[str, ...]
    noise: Mapping[str, float]
    is_sure: bool


def contenders(
    known: Sequence[Known],
    records: Sequence[Record],
    objectives: Sequence[Objective],
    *,
    most: int,
) -> list[Contender]:
    """The hand-written variants, and the best of what was found.

    Of the front of all that keep to their budget, at most ``most`` that were found.
    """
    ours = [
        Contender(
            one.name,
            one.name,
            tuple(one.value),
            one.result.measures,
            is_known=True,
            is_within=one.result.kind is Kind.MEASURED,
        )
        for one in known
        if one.result.kind is not Kind.FAILED
    ]
    taken = {one.name for one in known} | {record.variant for record in records}
    prefix = "search"
    while any(name.startswith(f"{prefix}-") for name in taken):
        prefix += "-found"
    found = [
        Contender(
            f"{prefix}-{record.number}",
            record.variant,
            tuple(record.value),
            record.result.measures,
            trial=record.number,
        )
        for record in records
        if record.result.kind is Kind.MEASURED
    ]
    losses = {one.name: _losses(one, objectives) for one in (*ours, *found) if one.is_within}
    best = {name: losses[name] for name in front(losses)}
    kept = spread({one.name: best[one.name] for one in found if one.name in best}, most)
    return [*ours, *(one for one in found if one.name in kept)]


async def measured_in_turns(
    entries: Sequence[Contender], time: Time, *, rounds: int, doing: Callable[[int, str], None]
) -> list[Contender]:
    """Time every contender once per round, each round in another order.

    One that cannot be served any more is left out, with a warning.
    """
    figures: dict[str, list[Measures]] = {one.name: [] for one in entries}
    done = 0
    for round_ in range(rounds):
        for index in order(len(entries), round_):
            one = entries[index]
            if one.name in figures:
                doing(done, f"round {round_ + 1} of {rounds}: {one.name}")
                try:
                    figures[one.name].append(await time(one, round_))
                except ServerError as error:
                    _log.warning("left out of the report", variant=one.name, error=str(error))
                    del figures[one.name]
            done += 1
    return [
        replace(
            one,
            rounds=tuple(figures[one.name]),
            measures={**one.measures, **_medians(figures[one.name])},
        )
        for one in entries
        if one.name in figures
    ]


def verdict(entries: Sequence[Contender], objectives: Sequence[Objective]) -> Verdict:
    """Say which are on the front, and which of those found add to it."""
    within = {one.name: _losses(one, objectives) for one in entries if one.is_within}
    on_front = front(within)
    known = [one for one in entries if one.is_known and one.is_within]
    added = [
        one.name
        for one in entries
        if not one.is_known
        and one.name in on_front
        and all(any(is_better(one, other, each) for each in objectives) for other in known)
    ]
    return Verdict(
        contenders=tuple(entries),
        front=tuple(on_front),
        added=tuple(added),
        noise={one.name.value: _noise(one, entries) for one in objectives if one.is_timed},
        is_sure=all(len(one.rounds) >= SURE_ROUNDS for one in entries),
    )


def is_better(one: Contender, other: Contender, objective: Objective) -> bool:
    """Whether a figure is better by more than is slight, and by more than chance would do.

    Of timed figures the ratios are looked at, paired by round: chance is excluded where their 95 %
    interval (Student's t over logarithms) excludes 1. Without enough rounds it is not asked.
    """
    mine, theirs = objective.loss(one.measures), objective.loss(other.measures)
    if mine >= theirs - SLIGHT * abs(theirs):
        return False
    if not objective.is_timed or min(len(one.rounds), len(other.rounds)) < SURE_ROUNDS:
        return True
    from server.comparison.statistics import ratio_over_rounds

    ratio = ratio_over_rounds(
        [measures[objective.measure] for measures in one.rounds],
        [measures[objective.measure] for measures in other.rounds],
    )
    if ratio.low is None or ratio.high is None:
        return False
    return ratio.high < 1 if objective.direction == "minimize" else ratio.low > 1


def _losses(one: Contender, objectives: Sequence[Objective]) -> list[float]:
    return [objective.loss(one.measures) for objective in objectives]


def _medians(rounds: Sequence[Measures]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def _noise(objective: Objective, entries: Sequence[Contender]) -> float:
    """The share by which rounds of one variant differ: the median over variants, of half ranges."""
    shares = [0.0]
    for one in entries:
        values = [measures[objective.measure] for measures in one.rounds]
        if len(values) > 1 and (middle := statistics.median(values)) > 0:
            shares.append((max(values) - min(values)) / 2 / middle)
    return statistics.median(shares[1:] or shares)
