"""One study: the trials of a search in a storage that outlives processes and may be shared.

Owns who works at which trial, how many count, what happens to a trial whose process died, and what
the sampler learns from each ending. Optuna's pruners want one objective; here the cheap checks
come first inside a trial, and one that fails them ends as pruned with the constraints that it
violates. The sampler learns from those too: TPE with constraints, after Watanabe and Hutter,
"c-TPE: Tree-structured Parzen Estimator with Inequality Constraints for Expensive Hyperparameter
Optimization", 2023, https://arxiv.org/abs/2211.14411. Knows nothing of chains or of how anything is
measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Self

from server.search.objectives import Objective
from server.search.owners import Owner, is_gone
from server.search.records import COUNTED, Kind, Record, Result
from server.search.storage import StudyError, open_storage, storing
from server.search.values import Params

if TYPE_CHECKING:
    import optuna

_RANDOM_FIRST = 6  # trials before the sampler trusts what it has seen
_MOST_ATTEMPTS = 3  # of one trial whose process dies each time
_KNOWN = "known:"
_NO_CHAIN = {"chain": 1.0}  # the constraint that a chain which cannot be built violates


class Turn(Enum):
    """Why no trial can begin."""

    DONE = "all trials are finished"
    WAIT = "the last trials are being worked at elsewhere"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A trial that this process works at."""

    trial: optuna.Trial
    origin: str
    begun_s: float


class Study:
    """The trials of one search.

    Args:
        study: Optuna's.
        storage: What it was opened from, for messages.
        objectives: In the order of the trials' values.
        seed: What a trial draws depends on it, on the trial's number and on what is finished.
        owner: This process.
        clock: Seconds since the epoch, alike on all machines that share the study.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: str,
        objectives: Sequence[Objective],
        *,
        seed: int,
        owner: Owner | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._study = study
        self._storage = storage
        self._objectives = tuple(objectives)
        self._seed = seed
        self._owner = owner or Owner.this()
        self._clock = clock

    @classmethod
    def open(cls, storage: str, name: str, objectives: Sequence[Objective], *, seed: int) -> Self:
        """Open a study, made where it is missing.

        Raises:
            StudyError: The storage cannot be used, or the study is another search's.
        """
        opened = open_storage(storage)
        import optuna

        directions = [one.direction for one in objectives]
        with storing(storage):
            study = optuna.create_study(
                storage=opened, study_name=name, directions=directions, load_if_exists=True
            )
            if [one.name.lower() for one in study.directions] != directions:
                raise StudyError(
                    f"The study {name!r} has other objectives.",
                    remedy="Name another storage with --storage.",
                )
        return cls(study, storage, objectives, seed=seed)

    # What is known.

    def records(self) -> list[Record]:
        """All finished trials, in their order."""
        return [_record(trial) for trial in self._trials() if trial.state.is_finished()]

    def record(self, number: int) -> Record:
        """One trial."""
        return _record(self._trials()[number])

    def counted(self) -> int:
        """How many finished trials count."""
        return sum(record.result.kind in COUNTED for record in self.records())

    def known(self, recipe: str) -> dict[str, Result]:
        """What a hand-written variant was measured to be, by the budget that it was judged by."""
        with storing(self._storage):
            kept = self._study.user_attrs
        prefix = f"{_KNOWN}{recipe}:"
        return {
            key.removeprefix(prefix): Result.from_json(content)
            for key, content in kept.items()
            if key.startswith(prefix)
        }

    def keep_known(self, result: Result, budget: str) -> None:
        """Keep the figures of a hand-written variant."""
        with storing(self._storage):
            self._study.set_user_attr(f"{_KNOWN}{result.recipe}:{budget}", result.as_json())

    # Trials.

    def plant(self, points: Sequence[tuple[str, Params]]) -> None:
        """Have points tried first; those that were planted before are not again."""
        with storing(self._storage):
            for origin, params in points:
                self._study.enqueue_trial(
                    params, user_attrs={"origin": origin}, skip_if_exists=True
                )

    def begin(self, limit: int, *, by_chance: bool = False) -> Ticket | Turn:
        """Begin a trial, unless as many as are wanted are finished or on their way.

        Args:
            limit: How many are wanted, over all processes.
            by_chance: Draw evenly, where the sampler has nothing new to offer.
        """
        import optuna

        self._reclaim()
        counted, running = self._progress()
        if counted >= limit:
            return Turn.DONE
        if counted + running >= limit:
            return Turn.WAIT
        with storing(self._storage):
            trial = self._study.ask()
            trial.set_user_attr("owner", self._owner.as_json() | {"since": self._clock()})
            origin = str(trial.user_attrs.get("origin", ""))
        # Two processes may have begun at once: of too many, the later in the storage's order yield.
        before = sum(self._progress(before=trial.number))
        ticket = Ticket(trial, origin, self._clock())
        if before >= limit:
            self.give_back(ticket)
            return Turn.WAIT
        seed = int.from_bytes(hashlib.sha256(f"{self._seed} {trial.number}".encode()).digest()[:4])
        # By number, so that neither a new start nor another process draws the same again.
        self._study.sampler = (
            optuna.samplers.RandomSampler(seed)
            if by_chance
            else optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM_FIRST)
        )
        return ticket

    def drew(self, ticket: Ticket, variant: str, value: Any) -> None:
        """Keep what a trial drew."""
        with storing(self._storage):
            ticket.trial.set_user_attr("drawn", {"variant": variant, "value": value})

    def beat(self, ticket: Ticket) -> None:
        """Say that the trial is still worked at."""
        from optuna.exceptions import UpdateFinishedTrialError

        with storing(self._storage), contextlib.suppress(UpdateFinishedTrialError):
            ticket.trial.set_user_attr("seen", self._clock())

    def finish(self, ticket: Ticket, result: Result) -> bool:
        """End a trial; False when it was taken over meanwhile, since nothing was heard of it."""
        from optuna.exceptions import UpdateFinishedTrialError

        violations = dict(result.violations)
        if result.kind in {Kind.FAILED, Kind.REFUSED}:
            violations |= _NO_CHAIN
        with storing(self._storage):
            try:
                for name, share in violations.items():
                    ticket.trial.set_constraint(name, share)
                # The last thing that is kept: with it anybody can end the trial.
                seconds = self._clock() - ticket.begun_s
                ticket.trial.set_user_attr("result", result.as_json() | {"seconds": seconds})
            except UpdateFinishedTrialError:
                return False
        return self._end(ticket.trial.number, result)

    def give_back(self, ticket: Ticket) -> None:
        """Leave a trial to whoever comes next."""
        self._put_back(ticket.trial.number, is_lost=False)

    def _reclaim(self) -> None:
        """Have the trials of processes that are gone done again."""
        now_s = self._clock()
        for trial in self._trials():
            if trial.state.name != "RUNNING":
                continue
            owner, since_s = _owner(trial)
            if not is_gone(owner, now_s - since_s, self._owner):
                continue
            if "result" in trial.user_attrs:
                self._end(trial.number, _record(trial).result)
            else:
                self._put_back(trial.number, is_lost=True)

    def _end(self, number: int, result: Result) -> bool:
        """Tell how a running trial ended; False when another process was quicker."""
        from optuna.trial import TrialState

        is_complete = result.kind in {Kind.MEASURED, Kind.KNOWN} and all(
            share <= 0 for share in result.violations.values()
        )
        with storing(self._storage):
            try:
                if is_complete:
                    values = [result.measures[one.measure] for one in self._objectives]
                    self._study.tell(number, values)
                else:
                    self._study.tell(number, state=TrialState.PRUNED)
            except (ValueError, RuntimeError):  # it is no longer running
                return False
        return True

    def _put_back(self, number: int, *, is_lost: bool) -> None:
        """End a running trial as failed, and have its point tried again.

        A point that was lost with its process several times is not: it may be what kills them.
        """
        from optuna.trial import TrialState

        trial = self._trials()[number]
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        attempts = int(trial.user_attrs.get("attempts", 0)) + is_lost
        with storing(self._storage):
            try:
                self._study.tell(number, state=TrialState.FAIL)
            except (ValueError, RuntimeError):  # another process was quicker
                return
            if params and attempts < _MOST_ATTEMPTS:
                origin = str(trial.user_attrs.get("origin", ""))
                self._study.enqueue_trial(params, {"origin": origin, "attempts": attempts})

    def _progress(self, *, before: int | None = None) -> tuple[int, int]:
        """How many trials count and how many run, of all or of those with smaller numbers."""
        trials = [one for one in self._trials() if before is None or one.number < before]
        counted = sum(
            one.state.is_finished() and _record(one).result.kind in COUNTED for one in trials
        )
        return counted, sum(one.state.name == "RUNNING" for one in trials)

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        with storing(self._storage):
            return self._study.get_trials(deepcopy=False)


def _owner(trial: optuna.trial.FrozenTrial) -> tuple[Owner | None, float]:
    """Who works at a trial, and when that was last heard of."""
    started = trial.datetime_start
    content = dict(trial.user_attrs.get("owner", {}))
    since_s = content.pop("since", 0.0 if started is None else started.timestamp())
    return Owner.from_json(content), max(since_s, trial.user_attrs.get("seen", 0.0))


def _record(trial: optuna.trial.FrozenTrial) -> Record:
    attributes = trial.user_attrs
    content = dict(attributes.get("result", {}))
    seconds = content.pop("seconds", 0.0)
    is_settled = content and trial.state.name != "FAIL"
    owner, _ = _owner(trial)
    return Record(
        number=trial.number,
        result=Result.from_json(content) if is_settled else Result(Kind.ABANDONED),
        **attributes.get("drawn", {}),
        origin=str(attributes.get("origin", "")),
        seconds=seconds,
        host="" if owner is None else owner.host,
    )
