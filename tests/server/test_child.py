"""The optimizer's child: what it answers, how it ends, and that it never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from artifacts.protocol import (
    BuildEvent,
    BuildRequest,
    JudgeRequest,
    PlanRequest,
    Progress,
    StageBegun,
)
from server.child import Child
from server.errors import OptimizerError
from server.optimizer import ChildOptimizer

# Speaks the protocol as its first argument says; the second is `plan`, `build` or `judge`.
PROGRAM = textwrap.dedent(
    """
    import json, os, signal, subprocess, sys, time

    mode, act = sys.argv[1:]
    say = lambda **event: print(json.dumps(event), flush=True)
    if act == "plan":
        request = json.loads(sys.stdin.read())
        if mode == "mute":
            print("It rains.", file=sys.stderr)
            sys.exit(3)
        if mode == "absent":
            print("python: No module named optimizers", file=sys.stderr)
            sys.exit(1)
        if mode == "slow":
            time.sleep(60)
        say(errors=[], revision="r1", variants={})
        sys.exit(0)
    request = json.loads(sys.stdin.readline())
    say(event="stage_begun", stage="export", index=0, count=2)
    if mode == "good":
        print("a library prints this", file=sys.stderr)
        say(event="progress", stage="export", fraction=0.5, message="half")
        say(event="built", artifact="a" * 64)
        sys.stdin.read()
    elif mode == "measures":
        quality = {"kl_mean": 0.5, "kl_p99": 1.0, "top1_agreement": 0.75, "documents": 1,
                   "positions": 9, "isa": request["artifact"]}
        say(event="judged", quality=quality)
    elif mode == "refuses":
        say(event="failed", code="unsupported", message="No exporter for it.", path="model",
            remedy="Use another.")
    elif mode == "crashes":
        print("Traceback: a library broke", file=sys.stderr)
        sys.exit(7)
    elif mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode == "falters":
        sys.stdout.write('{"event": "progress", "stage": "export", "mess')
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode in ("employs", "employs and dies", "employs and stays"):
        sleeper = [sys.executable, "-c", "import time; time.sleep(120)"]
        helper = subprocess.Popen(sleeper, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        say(event="progress", stage="x", fraction=0.0, message=str(helper.pid))
        if mode == "employs and dies":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdin.read()
        if mode == "employs and stays":
            time.sleep(120)
        os._exit(75)
    elif mode == "babbles":
        print("Loading weights...", flush=True)
    elif mode == "floods":
        print("x" * (2 << 20), flush=True)
    elif mode == "chatty":
        for number in range(20000):
            print(f"line {number}", file=sys.stderr)
        sys.exit(1)
    elif mode == "waits":
        say(event="progress", stage=str(os.nice(0)), fraction=0.0, message=str(os.getpid()))
        sys.stdin.read()  # until the parent is gone
    elif mode == "stubborn":
        say(event="progress", stage="x", fraction=0.0, message=str(os.getpid()))
        while True:
            time.sleep(1)
    """
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def optimizer(program: Path, mode: str, plan_timeout_s: float = 30) -> ChildOptimizer:
    return ChildOptimizer((sys.executable, str(program), mode), plan_timeout_s=plan_timeout_s)


def request(threads: int | None = None) -> BuildRequest:
    return BuildRequest(
        model="demo", variant="int8", chain=(), recipe="b" * 64, store="/s", threads=threads
    )


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def until_gone(pid: int) -> None:
    """Wait for a process that was killed and is nobody's child here."""
    async with asyncio.timeout(10):
        while not gone(pid):  # noqa: ASYNC110 - the kernel sends no event
            await asyncio.sleep(0.01)


async def build(program: Path, mode: str, *, background: bool = False) -> list[BuildEvent]:
    events: list[BuildEvent] = []
    await optimizer(program, mode).build(request(), events.append, background=background)
    return events


async def failure_of(program: Path, mode: str) -> OptimizerError:
    with pytest.raises(OptimizerError) as caught:
        await build(program, mode)
    return caught.value


async def test_a_build_tells_every_event_and_ends_with_the_artifact(program: Path) -> None:
    """Progress comes as it happens; what libraries print on stderr is no event."""
    events = await build(program, "good")
    assert [event.event for event in events] == ["stage_begun", "progress", "built"]


async def test_a_judge_ends_with_figures_and_with_nothing_else(program: Path) -> None:
    """Neither may the one answer for the other: versions of the two sides may differ."""
    asked = JudgeRequest(model="demo", variant="int8", artifact="asked for", store="/s")
    judge = optimizer(program, "measures").judge
    quality = await judge(asked, lambda _: None, background=False)
    assert (quality.kl_mean, quality.isa) == (0.5, "asked for")
    with pytest.raises(OptimizerError, match="judge of variant 'int8' said something"):
        await optimizer(program, "good").judge(asked, lambda _: None, background=False)
    with pytest.raises(OptimizerError, match="judge of variant 'int8' was killed") as killed:
        await optimizer(program, "killed").judge(asked, lambda _: None, background=True)
    assert killed.value.code == "judge_killed"


async def test_a_refusal_keeps_the_child_s_words(program: Path) -> None:
    """Code, path and remedy of the optimizer's own error reach the user."""
    error = await failure_of(program, "refuses")
    assert (error.code, error.path) == ("unsupported", "model")
    assert str(error) == "model: No exporter for it. Use another."


async def test_a_killed_child_is_named_with_its_signal_and_a_remedy(program: Path) -> None:
    """The system's out-of-memory killer gives no other word."""
    error = await failure_of(program, "killed")
    assert error.code == "build_killed"
    assert "variant 'int8' was killed by SIGKILL" in str(error)
    assert "memory" in str(error)


async def test_a_crash_shows_its_status_and_its_last_words(program: Path) -> None:
    """Whoever reads the error need not look for the log."""
    error = await failure_of(program, "crashes")
    assert "ended with status 7" in str(error)
    assert "a library broke" in str(error)


async def test_only_the_tail_of_a_chatty_child_is_kept(program: Path) -> None:
    """What a child says on stderr is bounded."""
    error = await failure_of(program, "chatty")
    assert "line 19999" in str(error)
    assert len(str(error)) < 2000


async def test_a_child_killed_in_the_middle_of_a_line_was_killed(program: Path) -> None:
    """Half a line is no word of another version's."""
    error = await failure_of(program, "falters")
    assert error.code == "build_killed"
    assert "not understood" not in str(error)


@pytest.mark.parametrize("mode", ["babbles", "floods"])
async def test_what_is_no_protocol_ends_the_build(program: Path, mode: str) -> None:
    """A line that is not understood, or never ends, is an error and not a guess."""
    error = await failure_of(program, mode)
    assert "not understood" in str(error) or "too long" in str(error)


@pytest.mark.parametrize(
    ("mode", "words", "is_missing"),
    [("mute", "ended with status 3. Its last words:\nIt rains.", False), ("absent", "", True)],
)
async def test_a_plan_without_an_answer_is_an_error(
    program: Path, mode: str, words: str, *, is_missing: bool
) -> None:
    """Only an optimizer that is not there is said to be missing; else its last words are told."""
    with pytest.raises(OptimizerError) as caught:
        await optimizer(program, mode).plan(PlanRequest(model="m", variants={}, store="/s"))
    assert words in str(caught.value)
    assert ("Is it installed?" in str(caught.value)) is is_missing


async def test_a_plan_is_not_waited_for_for_ever(program: Path) -> None:
    """A hub that does not answer must not hang the start."""
    with pytest.raises(OptimizerError, match=r"within 0\.5 s"):
        await optimizer(program, "slow", plan_timeout_s=0.5).plan(
            PlanRequest(model="m", variants={}, store="/s")
        )


async def running_child(
    program: Path, mode: str, *, background: bool
) -> tuple[asyncio.Task[list[BuildEvent]], Progress]:
    """A build that does not end, and what its child said of itself."""
    said: asyncio.Future[Progress] = asyncio.get_running_loop().create_future()
    events: list[BuildEvent] = []

    def observe(event: BuildEvent) -> None:
        events.append(event)
        if isinstance(event, Progress):
            said.set_result(event)

    async def run() -> list[BuildEvent]:
        await optimizer(program, mode).build(request(), observe, background=background)
        return events

    task = asyncio.create_task(run())
    return task, await asyncio.wait_for(said, 20)


async def test_a_cancelled_build_leaves_no_process(program: Path) -> None:
    """Shutting down closes stdin, and the child goes."""
    task, said = await running_child(program, "waits", background=False)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(int(said.message))


async def test_a_child_that_ignores_the_end_of_stdin_is_killed(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage deep in native code cannot hold up the end."""
    monkeypatch.setattr("server.child._LEAVE_S", 0.3)
    task, said = await running_child(program, "stubborn", background=False)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(int(said.message))


@pytest.mark.parametrize("mode", ["employs", "employs and stays"])
async def test_a_cancelled_build_leaves_no_grandchild(
    program: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the child has started goes with it, whether the child left by itself or was killed."""
    monkeypatch.setattr("server.child._LEAVE_S", 0.5)
    task, said = await running_child(program, mode, background=False)
    assert not gone(int(said.message))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_gone(int(said.message))


async def test_a_grandchild_does_not_hold_up_the_news_of_a_killed_build(program: Path) -> None:
    """It shares stderr, which would stay open for as long as it lives."""
    async with asyncio.timeout(20):
        task, said = await running_child(program, "employs and dies", background=False)
        with pytest.raises(OptimizerError, match="killed by SIGKILL"):
            await task
    await until_gone(int(said.message))


@pytest.mark.parametrize(("background", "nice"), [(True, 19), (False, os.nice(0))])
async def test_a_build_beside_serving_has_the_lowest_priority(
    program: Path, *, background: bool, nice: int
) -> None:
    """Whoever is being served must not feel a build; a first build has nobody to wait for."""
    task, said = await running_child(program, "waits", background=background)
    assert psutil.Process(int(said.message)).nice() == nice
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


PARENT = textwrap.dedent(
    """
    import asyncio, sys
    from artifacts.protocol import BuildRequest
    from server.optimizer import ChildOptimizer

    optimizer = ChildOptimizer((sys.executable, sys.argv[1], "waits"))
    request = BuildRequest(model="m", variant="v", chain=(), recipe="b" * 64, store="/s")
    tell = lambda event: print(event.model_dump_json(), flush=True)
    asyncio.run(optimizer.build(request, tell, background=False))
    """
)


def test_a_killed_parent_leaves_no_orphan(program: Path) -> None:
    """SIGKILL gives the server no chance to clean up: the kernel closes the child's stdin."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(program)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    with parent:
        assert StageBegun.model_validate_json(parent.stdout.readline())
        child = int(Progress.model_validate_json(parent.stdout.readline()).message)
        process = psutil.Process(child)
        assert process.ppid() == parent.pid
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        psutil.wait_procs([process], timeout=10)
        assert gone(child)


async def test_a_child_in_the_background_gives_way() -> None:
    """At once, and to its own session: where Linux groups by that, priorities count within one."""
    looks = (
        "import os, sys; sys.stdin.readline(); "
        "print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), "
        "os.getsid(0), os.getpgrp() == os.getpid())"
    )
    async with asyncio.timeout(20):
        child = await Child.start((sys.executable, "-c", looks))
        child.lower_priority()
        said = (await child.ask("look")).decode().split()
        assert said == ["19", str(os.SCHED_IDLE), str(os.getsid(0)), "True"]
        await child.end()
