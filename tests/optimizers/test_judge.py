"""An artifact that was published at once is measured afterwards, as if it had been before."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from artifacts.manifest import Manifest
from artifacts.protocol import (
    BuildEvent,
    BuildFailed,
    BuildRequest,
    Built,
    Judged,
    JudgeRequest,
    Progress,
    build_event,
)
from artifacts.store import Store
from optimizers import build, judge
from optimizers.events import Events

if TYPE_CHECKING:
    from tests.optimizers.conftest import BuiltVariants


@pytest.fixture
def store(built: BuiltVariants, tmp_path: Path) -> Store:
    """A copy of the store of built variants."""
    shutil.copytree(built.store.root, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def unmeasured(built: BuiltVariants, store: Store, evaluation: Path) -> Manifest:
    """int4, published again without figures; what it is made of is still there."""
    store.forget(built.manifest("int4").digest)
    request = BuildRequest(
        model=built.model,
        evaluation={"text": str(evaluation)},
        variant="int4",
        chain=built.plan.variants["int4"].chain,
        recipe=built.plan.variants["int4"].recipe,
        store=str(store.root),
        measure=False,
    )
    events = answered(build.run, request)
    assert "measuring" not in messages(events)
    (final,) = (event for event in events if isinstance(event, Built))
    return store.manifest(final.artifact)


def answered(act: Any, request: Any) -> list[BuildEvent]:
    out = io.BytesIO()
    act(request.model_dump_json().encode(), Events(out))
    return [build_event.validate_json(line) for line in out.getvalue().splitlines()]


def messages(events: list[BuildEvent]) -> list[str]:
    return [event.message for event in events if isinstance(event, Progress)]


def asked(built: BuiltVariants, store: Store, text: Path, **more: Any) -> JudgeRequest:
    artifact = built.manifest("int4").digest
    fields: dict[str, Any] = {
        "model": built.model,
        "evaluation": {"text": str(text)},
        "variant": "int4",
        "artifact": artifact,
        "store": str(store.root),
    }
    return JudgeRequest(**(fields | more))


def test_measuring_can_be_put_off_and_changes_no_content(
    built: BuiltVariants, unmeasured: Manifest
) -> None:
    """The artifact is the same; only nobody knows yet how good it is."""
    assert unmeasured.digest == built.manifest("int4").digest
    assert [record.quality for record in unmeasured.lineage] == [None, None]


def test_figures_made_afterwards_are_those_of_the_build(
    built: BuiltVariants, store: Store, unmeasured: Manifest, evaluation: Path
) -> None:
    """They complete the manifest, and are not made twice."""
    events = answered(judge.run, asked(built, store, evaluation))
    assert messages(events).count("measuring") == 1
    expected = built.manifest("int4").quality
    assert expected is not None
    assert events[-1] == Judged(quality=expected)
    completed = store.open(unmeasured.digest, verify=True).manifest
    assert completed.quality == expected
    assert completed == unmeasured.measured(expected)
    again = answered(judge.run, asked(built, store, evaluation))
    assert again[-1] == events[-1]
    assert "measuring" not in messages(again)


def test_figures_that_are_there_stay_in_the_manifest(
    built: BuiltVariants, store: Store, evaluation: Path, tmp_path: Path
) -> None:
    """Another text's are told to who asks; those of the build are everybody's."""
    before = store.manifest(built.manifest("int4").digest)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(evaluation.read_text().splitlines(keepends=True)[:5]))
    events = answered(judge.run, asked(built, store, evaluation, evaluation={"text": str(other)}))
    final = events[-1]
    assert isinstance(final, Judged)
    assert final.quality.text_sha256 != before.quality.text_sha256  # type: ignore[union-attr]
    assert store.manifest(before.digest) == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"artifact": "f" * 64}, "corrupt_artifact"),
        ({"evaluation": {"text": "/nowhere.jsonl"}}, "text"),
        ({"model": "demo"}, "recipe_changed"),
    ],
)
def test_what_cannot_be_judged_is_told(
    built: BuiltVariants, store: Store, evaluation: Path, *, change: dict[str, Any], code: str
) -> None:
    """Exactly one final event, as of a build."""
    events = answered(judge.run, asked(built, store, evaluation, **change))
    assert [event.code for event in events if isinstance(event, BuildFailed)] == [code]
    assert isinstance(events[-1], BuildFailed)


def test_the_program_judges(built: BuiltVariants, store: Store, evaluation: Path) -> None:
    """As a child: a request on standard input, events on standard output."""
    request = asked(built, store, evaluation)
    process = subprocess.Popen(
        [sys.executable, "-m", "optimizers", "judge"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(built.child.environment),
        cwd=built.child.root,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    events = [json.loads(line)["event"] for line in process.stdout]
    assert process.wait() == 0  # before its input closes, which would end it as an orphan
    process.stdin.close()
    process.stdout.close()
    assert (events[0], events[-1]) == ("stage_begun", "judged")
