"""A study outlives the processes that work at it, and two of them keep out of each other's way."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from server.search.objectives import OBJECTIVES, ObjectiveName
from server.search.owners import SILENT_S, Owner
from server.search.records import COUNTED, Kind, Result
from server.search.storage import StudyError, open_storage
from server.search.study import Study, Ticket, Turn
from tests.server.search.synthetic import config_for, open_study

ROOT = Path(__file__).parents[3]
BOTH = [OBJECTIVES[ObjectiveName.QUALITY], OBJECTIVES[ObjectiveName.DECODE]]
GOOD = Result(Kind.MEASURED, "r", "a", {"kl_mean": 0.1, "decode_1": 100.0})


@pytest.fixture
def journal(tmp_path: Path) -> str:
    """Where a study may lie."""
    return str(tmp_path / "studies" / "study.log")


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def begun(study: Study, limit: int = 100) -> Ticket:
    ticket = study.begin(limit)
    assert isinstance(ticket, Ticket)
    return ticket


def opened(
    storage: str, *, seed: int = 0, owner: Owner | None = None, clock: Clock | None = None
) -> Study:
    import optuna

    study = optuna.create_study(
        storage=open_storage(storage),
        study_name="s",
        directions=[one.direction for one in BOTH],
        load_if_exists=True,
    )
    return Study(study, storage, BOTH, seed=seed, owner=owner, clock=clock or time.time)


def run(
    store: Path, storage: str, log: Path, *, trials: int, build_s: float = 0.0, builds: int = 100
) -> subprocess.Popen[str]:
    arguments = [str(store), storage, str(trials), str(build_s), str(builds), str(log)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.server.search.synthetic", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_search_that_was_killed_goes_on_where_it_was(tmp_path: Path, journal: str) -> None:
    """SIGKILL in the middle of a build: nothing finished is done again, and nothing is lost."""
    store, log = tmp_path / "store", tmp_path / "built"
    first = run(store, journal, log, trials=8, builds=5)
    deadline_s = time.monotonic() + 60
    while len(lines(log)) < 6 and first.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    first.kill()
    _, complained = first.communicate()
    assert first.returncode == -signal.SIGKILL, complained
    config = config_for(store)
    study = open_study(journal, config)
    before = {one.number: one for one in study.records() if one.result.kind in COUNTED}
    assert len(before) == 3  # two builds were of the hand-written variants

    second = run(store, journal, log, trials=8)
    said, complained = second.communicate(timeout=120)
    assert (second.returncode, said.strip()) == (0, "DONE"), complained
    records = open_study(journal, config).records()
    counted = {one.number: one for one in records if one.result.kind in COUNTED}
    assert len(counted) == 8
    assert before.items() <= counted.items()
    (lost,) = [one for one in records if one.result.kind is Kind.ABANDONED]
    assert len([one for one in counted.values() if one.value == lost.value]) == 1
    builds = Counter(lines(log))
    assert [builds[one.result.recipe] for one in before.values()] == [1, 1, 1]
    assert sorted(builds.values())[-2:] == [1, 2]  # only the one that was killed was begun twice


def test_two_processes_share_a_study(tmp_path: Path, journal: str) -> None:
    """As many trials as wanted in all, each done by one of them."""
    log = tmp_path / "built"
    both = [
        run(tmp_path / f"store-{index}", journal, log, trials=10, build_s=0.1) for index in range(2)
    ]
    for process in both:
        said, complained = process.communicate(timeout=120)
        assert (process.returncode, said.strip()) == (0, "DONE"), complained
    records = open_study(journal, config_for(tmp_path / "store-0")).records()
    counted = [one for one in records if one.result.kind in COUNTED]
    assert len(counted) == 10
    assert len({str(one.value) for one in counted}) == 10
    study = open_study(journal, config_for(tmp_path / "store-0"))
    owners = {trial.user_attrs["owner"]["pid"] for trial in study._trials()}
    assert len(owners) == 2


def test_no_more_begin_than_are_wanted(journal: str) -> None:
    """What runs elsewhere counts until it ends otherwise."""
    study = opened(journal)
    first, second = begun(study, 2), begun(study, 2)
    assert study.begin(2) is Turn.WAIT
    study.finish(first, GOOD)
    assert study.begin(2) is Turn.WAIT
    study.finish(second, Result(Kind.REPEATED))
    third = begun(study, 2)
    study.finish(third, Result(Kind.FAILED, reason="why"))
    assert study.begin(2) is Turn.DONE
    assert study.counted() == 2


def test_what_breaks_the_budget_ends_as_pruned_with_its_constraint(journal: str) -> None:
    """So that Optuna's own best trials, and its sampler, know."""
    study = opened(journal)
    study.finish(begun(study), GOOD)
    over = Result(Kind.OVER_BUDGET, "o", "a", {"kl_mean": 0.9}, {"kl_mean": 2.0, "size": 0.0})
    study.finish(begun(study), over)
    study.finish(begun(study), Result(Kind.FAILED, "f", reason="no"))
    good, bad, failed = study._trials()
    assert [trial.state.name for trial in (good, bad, failed)] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert bad.constraints == {"kl_mean": 2.0, "size": 0.0}
    assert failed.constraints == {"chain": 1.0}
    assert [trial.number for trial in study._study.best_trials] == [0]
    assert study.records()[1].result == over


def drawn(storage: str, seed: int) -> list[float]:
    """Twelve trials' draws, in two sittings."""
    values = []
    for count in (5, 7):
        study = opened(storage, seed=seed)
        for _ in range(count):
            ticket = begun(study)
            x = ticket.trial.suggest_float("x", 0, 1)
            values.append(x)
            study.finish(ticket, Result(Kind.MEASURED, "", "", {"kl_mean": x, "decode_1": 1 - x}))
    return values


def test_what_is_drawn_depends_on_the_seed_alone(tmp_path: Path) -> None:
    """A new start draws what the old one would have, and never the same again."""
    first = drawn(str(tmp_path / "a"), 1)
    assert drawn(str(tmp_path / "b"), 1) == first
    assert drawn(str(tmp_path / "c"), 2) != first
    assert len(set(first)) == len(first)


def test_a_trial_of_a_silent_machine_is_taken_over(journal: str) -> None:
    """Its process cannot be looked up from here; after minutes without a word it is gone."""
    clock = Clock()
    far = Owner("far", "elsewhere", 1, 1)
    there, here = opened(journal, owner=far, clock=clock), opened(journal, clock=clock)
    ticket = begun(there)
    x = ticket.trial.suggest_float("x", 0, 1)
    clock.now_s += SILENT_S - 1
    there.beat(ticket)
    clock.now_s += SILENT_S - 1
    assert here.begin(1) is Turn.WAIT
    clock.now_s += 2
    again = begun(here, 1)
    assert again.trial.suggest_float("x", 0, 1) == x
    there.beat(ticket)
    assert not there.finish(ticket, GOOD)
    assert here.finish(again, GOOD)
    assert here.counted() == 1


def test_a_result_whose_process_died_before_it_was_told_counts(
    journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was kept whole, so nothing is measured again."""
    gone = Owner("here", Owner.this().place, 2**22 + 1, 1)
    dying = opened(journal, owner=gone)
    ticket = begun(dying)
    monkeypatch.setattr(dying, "_end", lambda *_: True)
    dying.finish(ticket, GOOD)
    study = opened(journal)
    assert study.begin(1) is Turn.DONE
    assert study.records()[0].result == GOOD


def test_a_point_that_kills_its_process_each_time_is_given_up(journal: str) -> None:
    """It may need more memory than there is."""
    gone = Owner("here", Owner.this().place, 2**22 + 1, 1)
    seen = []
    for _ in range(5):
        ticket = begun(opened(journal, owner=gone))
        seen.append(ticket.trial.suggest_float("x", 0, 1))
    assert len(set(seen[:3])) == 1
    assert seen[3] != seen[0]


def test_a_trial_that_is_given_back_is_the_next(journal: str) -> None:
    """With its draw, its origin, and as often as one likes."""
    study = opened(journal)
    study.plant([("int8", {"x": 0.5})])
    for _ in range(5):
        ticket = begun(study)
        assert (ticket.origin, ticket.trial.suggest_float("x", 0, 1)) == ("int8", 0.5)
        study.give_back(ticket)
    assert study.counted() == 0


def test_points_are_planted_once(journal: str) -> None:
    """Every start plants them."""
    for _ in range(2):
        opened(journal).plant([("int8", {"x": 0.5}), ("int4", {"x": 0.25})])
    assert len(opened(journal)._trials()) == 2


def test_a_database_does_as_well(tmp_path: Path) -> None:
    """Machines without a common folder share one."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = opened(storage)
    study.plant([("int8", {"x": 0.5})])
    study.finish(begun(study), GOOD)
    study.keep_known(GOOD, "b")
    again = opened(storage)
    assert [record.result for record in again.records()] == [GOOD]
    assert (again.known("r"), again.known("s")) == ({"b": GOOD}, {})


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("nosuch://host/db", "no kind that can be opened"),
        ("sqlite:////nowhere/at/all/x.db", "does not answer"),
        ("/proc/nowhere/x.log", "cannot be used"),
    ],
)
def test_a_storage_that_cannot_be_used_is_told(storage: str, words: str) -> None:
    """In words and with a remedy, and without what an address may hold in secret."""
    with pytest.raises(StudyError, match=words) as caught:
        opened(storage)
    assert caught.value.remedy
    assert "host" not in str(caught.value).replace("HOST", "")


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    """It is somebody's file, perhaps, and no search's."""
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\nthis has no end")
    with pytest.raises(StudyError, match="no journal of a search"):
        opened(str(path))
    assert path.read_text() == "dear diary\nthis has no end"


def test_a_line_that_was_cut_off_is_dropped(journal: str) -> None:
    """The machine lost power in the middle of a write."""
    study = opened(journal)
    study.finish(begun(study), GOOD)
    with Path(journal).open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    again = opened(journal)
    assert again.counted() == 1
    again.finish(begun(again), GOOD)
    assert opened(journal).counted() == 2
