"""What is kept between stages, and what killed builders and bad disks leave of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.layout import Layout
from artifacts.manifest import StageRecord
from optimizers.results import Made, Result, Results

KEY = "a" * 64
OTHER = "b" * 64


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "store")
    layout.create()
    return layout


def _work(target: Path) -> Made:
    (target / "weights").write_bytes(b"12345678")
    return Made(StageRecord(stage="prune", form="torch", seconds=1, size_bytes=8))


def _make(layout: Layout) -> Result:
    return Results(layout).make(KEY, _work, keep=True)


def _damage(result: Result) -> Path:
    path = result.folder / "weights"
    path.chmod(0o644)
    path.write_bytes(b"87654321")
    return path


def test_a_finished_result_is_made_once(layout: Layout) -> None:
    """Whoever comes later finds it."""
    made = _make(layout)

    def never(_: Path) -> Made:
        raise AssertionError

    assert Results(layout).make(KEY, never, keep=True) == made
    assert Results(layout).find(KEY) == made


def test_looking_removes_nothing(layout: Layout) -> None:
    """Another builder may be putting a fresh result there: only who holds the lock removes."""
    path = _damage(_make(layout))
    assert Results(layout).find(KEY) is None
    assert path.is_file()


def test_a_damaged_result_is_made_again(layout: Layout) -> None:
    """It is replaced as a whole."""
    path = _damage(_make(layout))
    (path.parent / "left over").write_bytes(b"")
    _make(layout)
    assert path.read_bytes() == b"12345678"
    assert sorted(one.name for one in path.parent.iterdir()) == ["done.json", "weights"]


def test_a_damaged_result_takes_no_space_while_it_is_made_again(layout: Layout) -> None:
    """A disk that held one result shall be able to hold it again."""
    folder = _damage(_make(layout)).parent

    def work(target: Path) -> Made:
        assert not folder.exists()
        return _work(target)

    Results(layout).make(KEY, work, keep=True)


@pytest.mark.parametrize("keep", [True, False])
def test_drafts_of_killed_builders_go_with_the_next_try(layout: Layout, *, keep: bool) -> None:
    """A large model's draft is tens of gigabytes; those of other results are left alone."""
    for name in (f"{KEY}.0123", f"{OTHER}.0123"):
        (layout.tmp / name).mkdir()
        (layout.tmp / name / "weights").write_bytes(b"1234")

    def work(target: Path) -> Made:
        assert sorted(layout.tmp.iterdir()) == sorted([target, layout.tmp / f"{OTHER}.0123"])
        return _work(target)

    Results(layout).make(KEY, work, keep=keep)
    assert [path.name for path in layout.tmp.iterdir()] == [f"{OTHER}.0123"]
