"""Figures of one machine: kept apart, read back, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from artifacts.errors import StoreError
from artifacts.host_figures import Figure, Host, HostFigures, read_figures, write_figures
from artifacts.layout import Layout
from artifacts.prune import prune
from artifacts.store import Store

ARTIFACT = "a" * 64
HOST = Host(processor="Example / 9000", isa="x86_64-avx2", cores=2, onnxruntime="1.32.0")
FIGURES = HostFigures(
    host=HOST,
    measured="2026-11-24T12:00:00Z",
    rounds=5,
    disturbed_rounds=0,
    speeds={"decode_1_tokens_per_second": Figure(value=96.5, low=81.0, high=114.8)},
    quality={},
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "store")
    layout.create()
    return layout


def _path(layout: Layout) -> Path:
    (path,) = layout.hosts.rglob("speed.json")
    return path


def test_figures_are_read_back_on_the_same_machine_only(layout: Layout) -> None:
    """Other cores, another processor or another runtime have other figures."""
    write_figures(layout, ARTIFACT, FIGURES)
    assert read_figures(layout, ARTIFACT, HOST) == FIGURES
    for change in ({"cores": 4}, {"processor": "Other"}, {"onnxruntime": "1.33.0"}):
        assert read_figures(layout, ARTIFACT, HOST.model_copy(update=change)) is None
    assert _path(layout).parts[-3].startswith("x86_64-avx2-2-ort1.32.0-")


def test_later_figures_take_the_place_of_earlier_ones(layout: Layout) -> None:
    """One file per machine and artifact."""
    later = FIGURES.model_copy(update={"rounds": 9})
    write_figures(layout, ARTIFACT, FIGURES)
    write_figures(layout, ARTIFACT, later)
    assert read_figures(layout, ARTIFACT, HOST) == later
    assert not list(layout.tmp.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 2}', b" " * (1 << 19)])
def test_what_cannot_be_read_is_as_if_it_were_not_there(layout: Layout, content: bytes) -> None:
    """Damage, another format, or a file that is too large: it can be measured again."""
    write_figures(layout, ARTIFACT, FIGURES)
    _path(layout).write_bytes(content)
    assert read_figures(layout, ARTIFACT, HOST) is None


def test_no_name_leads_out_of_the_store(layout: Layout) -> None:
    """An artifact is a digest or nothing."""
    assert read_figures(layout, "../../secret", HOST) is None


def test_a_store_that_cannot_be_written_says_so(layout: Layout) -> None:
    """As every other write to it does."""
    layout.hosts.rmdir()
    layout.hosts.write_text("in the way")
    with pytest.raises(StoreError):
        write_figures(layout, ARTIFACT, FIGURES)


def test_figures_of_artifacts_that_are_gone_are_collected(layout: Layout) -> None:
    """Nothing else in the machine's folder is."""
    write_figures(layout, ARTIFACT, FIGURES)
    (layout.hosts / "checked").mkdir()
    told = prune(Store(layout.root), older_than_s=0, dry_run=True)
    prune(Store(layout.root), older_than_s=0, dry_run=False)
    assert [os.path.basename(path) for path in told.paths] == [ARTIFACT]  # noqa: PTH119 - text
    assert read_figures(layout, ARTIFACT, HOST) is None
    assert (layout.hosts / "checked").is_dir()
