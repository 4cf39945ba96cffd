"""Quality that says too little is measured anew; what says enough is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from artifacts.digest import sha256_file
from artifacts.isa import isa_class
from artifacts.manifest import Quality
from artifacts.protocol import PlannedVariant, PlanResponse
from server.catalog import VariantState, VariantView
from server.comparison.remeasuring import measured
from server.config.sources import load
from server.errors import OptimizerError
from server.planning import Planned
from tests.server.comparison.planted import MakeSubject, quality

ANEW = quality(0.25)


class Optimizer:
    """Measures at once, or fails."""

    def __init__(self, *, fails: bool = False) -> None:
        self.asked: list[Any] = []
        self._fails = fails

    async def judge(self, request: Any, observe: Any, *, background: bool) -> Quality:
        del observe, background
        self.asked.append(request)
        if self._fails:
            raise OptimizerError("out of memory")
        return ANEW

    plan = build = None


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """A config with a text."""
    (tmp_path / "text.txt").write_text("some text")
    path = tmp_path / "config.yaml"
    content = {"model": "demo", "variants": {"int8": []}, "evaluation": {"text": "text.txt"}}
    path.write_text(yaml.safe_dump(content))
    config = load(path, environment={}, flags={})
    variants = {"int8": PlannedVariant(recipe="a" * 64, chain=())}
    return Planned(config, PlanResponse(variants=variants))


def _enough(tmp_path: Path) -> Quality:
    text = sha256_file(tmp_path / "text.txt")
    return quality(0.01, text=text).model_copy(update={"isa": isa_class()})


def _view(subject: MakeSubject, of: Quality) -> VariantView:
    manifest = subject("int8", of=of).manifest
    return VariantView("int8", VariantState.READY, manifest=manifest, artifact=manifest.digest)


async def test_figures_that_say_enough_are_kept(
    planned: Planned, tmp_path: Path, subject: MakeSubject
) -> None:
    """Of this text, on this class of processor, by document."""
    optimizer, view = Optimizer(), _view(subject, _enough(tmp_path))
    assert await measured((view,), planned, optimizer, threads=1) == (view,)  # type: ignore[arg-type]
    assert not optimizer.asked


@pytest.mark.parametrize(
    "lacking", [{"by_document": ()}, {"isa": "riscv64-base"}, {"text_sha256": "f" * 64}]
)
async def test_figures_that_say_too_little_are_taken_anew(
    planned: Planned, tmp_path: Path, subject: MakeSubject, lacking: dict[str, Any]
) -> None:
    """The rest of the manifest stays."""
    optimizer = Optimizer()
    view = _view(subject, _enough(tmp_path).model_copy(update=lacking))
    (anew,) = await measured((view,), planned, optimizer, threads=1)  # type: ignore[arg-type]
    assert anew.manifest is not None
    assert anew.manifest.quality == ANEW
    assert [request.artifact for request in optimizer.asked] == [view.artifact]


async def test_what_cannot_be_measured_keeps_what_it_has(
    planned: Planned, tmp_path: Path, subject: MakeSubject
) -> None:
    """A report without an interval is better than none."""
    view = _view(subject, _enough(tmp_path).model_copy(update={"by_document": ()}))
    optimizer = Optimizer(fails=True)
    assert await measured((view,), planned, optimizer, threads=1) == (view,)  # type: ignore[arg-type]
    assert optimizer.asked
