"""Builds that are killed, orphaned, or started twice at once."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from artifacts.protocol import (
    BuildEvent,
    BuildFailed,
    Built,
    StageBegun,
    build_event,
)
from artifacts.store import Store

if TYPE_CHECKING:
    from tests.optimizers.conftest import BuiltVariants, Child


@pytest.fixture(scope="module")
def story(
    built: BuiltVariants,
    tiny_llama_folder: Path,
    evaluation: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[str, Any]:
    """Kill a build in the stage after its export, then start two of the same at once."""
    child = type(built.child)(tmp_path_factory.mktemp("interrupted") / "store")
    planned = built.plan.variants["int4"]
    text = {"evaluation": {"text": str(evaluation)}}
    first = child.start(str(tiny_llama_folder), planned, **text)
    assert first.stdout is not None
    for line in first.stdout:
        event = build_event.validate_json(line)
        if isinstance(event, StageBegun) and event.stage == "quantize":
            break
    drafts = child.store / "tmp"
    while not any(drafts.iterdir()):
        time.sleep(0.001)
    first.send_signal(signal.SIGKILL)
    _close(first)
    after_kill = list(child.store.joinpath("manifests").iterdir())
    left = list(drafts.iterdir())
    pair = [child.start(str(tiny_llama_folder), planned, **text) for _ in range(2)]
    events = [_read(process) for process in pair]
    return {"child": child, "after_kill": after_kill, "left": left, "events": events}


def test_a_killed_build_leaves_no_artifact(story: Mapping[str, Any]) -> None:
    """Nothing that a reader could see exists before the last write."""
    assert story["after_kill"] == []


def test_a_killed_build_resumes_at_its_last_finished_stage(story: Mapping[str, Any]) -> None:
    """Whoever builds next finds the export done."""
    begun = [
        event
        for events in story["events"]
        for event in events
        if isinstance(event, StageBegun) and event.stage == "export"
    ]
    assert begun
    assert all(event.reused for event in begun)


def test_a_killed_build_s_draft_goes_with_the_build_that_resumes(story: Mapping[str, Any]) -> None:
    """Tries that are killed one after another do not fill the disk."""
    child: Child = story["child"]
    assert story["left"]
    assert list(child.store.joinpath("tmp").iterdir()) == []


def test_two_builders_at_once_make_one_artifact(
    story: Mapping[str, Any], built: BuiltVariants
) -> None:
    """One builds, the other waits and finds it; it is the one that another store got too."""
    expected = Built(artifact=built.manifest("int4").digest)
    assert [events[-1] for events in story["events"]] == [expected, expected]
    builders = [events for events in story["events"] if len(events) > 1]
    assert len(builders) == 1
    child: Child = story["child"]
    assert Store(child.store).open(expected.artifact, verify=True).manifest.chain


def test_a_build_ends_when_its_parent_is_killed(child: Child, tiny_llama_folder: Path) -> None:
    """Its standard input closes with the parent, whatever ended that, and the child leaves."""
    model = str(tiny_llama_folder)
    planned = child.plan(model, {"v": []}).variants["v"]
    request = {
        "model": model,
        "variant": "v",
        "chain": [],
        "recipe": planned.recipe,
        "store": str(child.store),
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, repr(request)], stdout=subprocess.PIPE, env={**os.environ}
    )
    assert parent.stdout is not None
    process = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    _close(parent)
    process.wait(timeout=30)


def test_a_build_ends_when_its_input_is_closed(child: Child, tiny_llama_folder: Path) -> None:
    """A parent that has lost interest needs no signal."""
    model = str(tiny_llama_folder)
    process = child.start(model, child.plan(model, {"v": []}).variants["v"])
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 75
    assert process.stdout is not None
    process.stdout.close()


def test_a_disk_that_fills_up_ends_the_build_with_a_remedy(
    child: Child, tiny_llama_folder: Path
) -> None:
    """No file may grow beyond 100,000 bytes here; nothing half-written is left to be found."""
    model = str(tiny_llama_folder)
    planned = child.plan(model, {"v": []}).variants["v"]
    process = child.start(model, planned)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    failed = _read(process)[-1]
    assert isinstance(failed, BuildFailed)
    assert failed.code in {"disk_full", "store"}
    assert "Free space" in failed.remedy
    store = Store(child.store)
    assert store.find(planned.recipe) is None
    assert list(store.layout.tmp.iterdir()) == []
    assert list(store.layout.stages.iterdir()) == []


_PARENT = """
import json, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-m", "optimizers", "build"],
    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
child.stdin.write(json.dumps(eval(sys.argv[1])).encode() + b"\\n")
child.stdin.flush()
print(child.pid, flush=True)
child.wait()
"""


def _read(process: subprocess.Popen[bytes]) -> list[BuildEvent]:
    assert process.stdout is not None
    events = [build_event.validate_json(line) for line in process.stdout]
    _close(process)
    return events


def _close(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
