"""A real server whose builds fail, whose artifacts are damaged, and that is told to stop."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from artifacts.store import Store
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from server.comparison.server_process import ServerProcess
from tests.slow_reading import NARROW

BASELINE: dict[str, Any] = {"baseline": []}
# In no store that the tests share: it must be built.
FRESH: dict[str, Any] = {"fresh": [{"quantize": {"method": "weight_only", "bits": 8}}]}


def demo(store: Path, variants: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "demo", "variants": variants, "store": str(store), **more}


def long_request(tokens: int) -> pb.GenerateRequest:
    sampling = pb.SamplingParameters(max_tokens=tokens, ignore_eos=True, temperature=0)
    return pb.GenerateRequest(text="def main():", sampling=sampling)


def build_child(server: ServerProcess) -> psutil.Process | None:
    return child_that(server, "build")


def child_that(server: ServerProcess, act: str) -> psutil.Process | None:
    for child in server.children():
        try:
            if child.cmdline()[-1:] == [act]:
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def state(server: ServerProcess, name: str) -> dict[str, Any]:
    import json

    views = json.loads(server.get("/readyz")[1])["variants"]
    return next(view for view in views if view["name"] == name)


# Stopping.


def test_sigterm_lets_a_stream_finish_and_refuses_new_work(
    demo_store: Path, launch: Any, write_config: Any, stub: Any
) -> None:
    """Whoever is being answered notices nothing; whoever comes now goes elsewhere."""
    server = launch(write_config(**demo(demo_store, BASELINE)))
    server.wait_ready()
    ask = stub(server)
    with ExitStack() as stack:
        # However long the checks take, the stream does not end before it is read.
        narrow = stack.enter_context(grpc.insecure_channel(server.target, options=NARROW))
        stream = inference_pb2_grpc.InferenceStub(narrow).Generate(long_request(400), timeout=120)
        tokens = list(next(stream).token_ids)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.get("/healthz")[0] == 503 or None)
        with pytest.raises(grpc.RpcError) as refused:
            ask.Complete(long_request(1), timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        health = health_pb2_grpc.HealthStub(
            stack.enter_context(grpc.insecure_channel(server.target))
        )
        for name in ("", "baseline"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        messages = list(stream)
    tokens += [token for message in messages for token in message.token_ids]
    assert len(tokens) == messages[-1].finish.usage.completion_tokens == 400
    assert server.process.wait(30) == 0


def test_sigterm_lets_a_slow_reader_have_the_whole_answer(
    demo_store: Path, launch: Any, write_config: Any
) -> None:
    """That the engine is done with an answer does not mean that its caller has it."""
    server = launch(write_config(**demo(demo_store, BASELINE)))
    server.wait_ready()
    with grpc.insecure_channel(server.target, options=NARROW) as channel:
        stream = inference_pb2_grpc.InferenceStub(channel).Generate(long_request(500), timeout=120)
        next(stream)
        running = 'inference_running_requests{model="demo",variant="baseline"} 0.0'
        server.wait_for(lambda: running in server.get("/metrics")[1] or None)
        server.process.send_signal(signal.SIGTERM)
        read = 1
        for _ in stream:
            read += 1
            time.sleep(0.01)
    assert read == 500
    assert server.process.wait(30) == 0


def test_a_second_signal_cuts_streams_short(
    demo_store: Path, launch: Any, write_config: Any
) -> None:
    """An operator in a hurry is obeyed; the caller gets an error and not a silent end."""
    server = launch(write_config(**demo(demo_store, BASELINE)))
    server.wait_ready()
    with grpc.insecure_channel(server.target, options=NARROW) as channel:
        stream = inference_pb2_grpc.InferenceStub(channel).Generate(long_request(1000), timeout=120)
        next(stream)
        server.process.send_signal(signal.SIGINT)
        server.wait_for(lambda: server.get("/healthz")[0] == 503 or None)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as cut:
            list(stream)
    assert cut.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.process.wait(30) == 0


def test_streams_are_cut_at_the_drain_limit(
    demo_store: Path, launch: Any, write_config: Any, stub: Any
) -> None:
    """A stream that never ends does not keep the process for ever."""
    config = write_config(**demo(demo_store, BASELINE, server={"drain_seconds": 0.3}))
    server = launch(config)
    server.wait_ready()
    stream = stub(server).Generate(long_request(1000), timeout=120)
    next(stream)
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError) as cut:
        list(stream)
    assert cut.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.process.wait(30) == 0


def hears_sigterm(server: ServerProcess) -> bool | None:
    """True once the process has a handler for it."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1) or None


def judging_child(server: ServerProcess) -> psutil.Process | None:
    return child_that(server, "plan")


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("moment", [hears_sigterm, judging_child])
def test_sigterm_before_anything_is_served_is_a_stop_like_any_other(
    demo_store: Path, launch: Any, write_config: Any, *, moment: Any, seconds: float
) -> None:
    """From the first moment on that it can be heard; the child that judges chains goes as well."""
    server = launch(write_config(**demo(demo_store, BASELINE)))
    server.wait_for(lambda: moment(server), 20)
    time.sleep(seconds)
    children = server.children()
    assert server.stop() == 0
    assert [child for child in psutil.wait_procs(children, timeout=1)[1] if runs(child)] == []
    assert "Traceback" not in server.log


def runs(process: psutil.Process) -> bool:
    """Not when it has ended and only waits for somebody to be told; its parent is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


# Builds that end badly.


def test_while_the_default_builds_nothing_serves_and_its_killed_child_costs_it_alone(
    own_store: Path, launch: Any, write_config: Any, stub: Any
) -> None:
    """Listeners answer from the start; a killed build fails with its reason; the rest serves."""
    server = launch(write_config(**demo(own_store, FRESH | BASELINE)))
    child = server.wait_for(lambda: build_child(server))
    ask = stub(server)
    assert [server.get(path)[0] for path in ("/livez", "/healthz", "/readyz")] == [200, 503, 503]
    view = ask.GetVariant(pb.GetVariantRequest(), timeout=30)
    assert (view.name, view.state) == ("fresh", pb.VARIANT_STATE_BUILDING)
    with pytest.raises(grpc.RpcError) as building:
        ask.Complete(long_request(1), timeout=30)
    assert building.value.code() == grpc.StatusCode.UNAVAILABLE
    child.kill()

    states = {one["name"]: one for one in server.wait_ready()["variants"]}
    assert states["fresh"]["state"] == "failed"
    assert "variant 'fresh' was killed by SIGKILL" in states["fresh"]["error"]
    assert states["baseline"]["state"] == "ready"
    assert server.get("/healthz")[0] == 503  # the default is the one that failed
    answer = ask.Complete(
        pb.GenerateRequest(
            variant="baseline", text="x", sampling=pb.SamplingParameters(max_tokens=2)
        ),
        timeout=60,
    )
    assert answer.finish.usage.completion_tokens > 0
    assert server.stop() == 0


def test_a_killed_server_leaves_no_orphan_and_no_half_artifact(
    own_store: Path, launch: Any, write_config: Any
) -> None:
    """SIGKILL gives no chance to clean up; the child goes all the same."""
    manifests = set((own_store / "manifests").iterdir())
    server = launch(write_config(**demo(own_store, FRESH)))
    child = server.wait_for(lambda: build_child(server))
    server.process.kill()
    server.process.wait()
    gone, alive = psutil.wait_procs([child], timeout=30)
    assert (len(gone), alive) == (1, [])
    assert set((own_store / "manifests").iterdir()) == manifests


def test_sigterm_during_a_build_ends_the_child(
    own_store: Path, launch: Any, write_config: Any
) -> None:
    """Stopping does not wait for a build, and leaves nothing behind."""
    server = launch(write_config(**demo(own_store, FRESH)))
    child = server.wait_for(lambda: build_child(server))
    assert server.stop() == 0
    assert not child.is_running()


def test_a_full_disk_is_told_and_leaves_no_artifact(
    tmp_path: Path, launch: Any, write_config: Any
) -> None:
    """With nothing to serve the process ends with 1 and says why."""
    store = tmp_path / "store"
    config = write_config(**demo(store, BASELINE))

    def limit() -> None:  # a file-size limit fails like a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))

    server = launch(config, prepare=limit)
    assert server.process.wait(120) == 1
    assert "isk is full" in server.log or "disk of the store" in server.log
    assert not list((store / "manifests").iterdir())


# An engine that hangs.

HANGING = """
import sys, threading
import server.loading
from artifacts.errors import StepTerminatedError
from server.cli import main

opened = server.loading.open_session
steps = 0

def open_hanging(*arguments, **options):
    session = opened(*arguments, **options)
    step, ended = session.step, threading.Event()

    def hang(rows):
        global steps
        steps += 1
        if steps <= 4:  # warming up, and the first two of the request
            return step(rows)
        ended.wait()
        raise StepTerminatedError("The step was terminated.")

    session.step = hang
    session.terminate = {terminate}
    return session

server.loading.open_session = open_hanging
main()
"""


@pytest.mark.parametrize("terminate", ["ended.set", "lambda: None"], ids=["ends", "never-ends"])
def test_a_hung_step_ends_its_streams_and_the_process_with_70(
    demo_store: Path, launch: Any, write_config: Any, stub: Any, terminate: str
) -> None:
    """A supervisor is told to start again, whether or not the step lets itself be ended."""
    config = write_config(**demo(demo_store, BASELINE, engine={"hang_seconds": 1}))
    server = launch(config, program=("-c", HANGING.format(terminate=terminate)))
    server.wait_ready()
    with grpc.insecure_channel(server.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watches = [
            health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=120)
            for name in ("", "baseline")
        ]
        for watch in watches:
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        stream = stub(server).Generate(long_request(100), timeout=120)
        next(stream)
        if terminate == "lambda: None":  # else the process may be gone before anybody has looked
            server.wait_for(lambda: server.get("/livez")[0] == 503 or None)
        for watch in watches:
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as hung:
            list(stream)
    assert hung.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.process.wait(30) == 70
    assert "the engine hangs" in server.log


# An engine that breaks.

DYING = """
from server.cli import main
from server.engine.engine import Engine

def submit(engine, request):
    raise RuntimeError("A fault of the engine itself.")

Engine._submit = submit
main()
"""

LOST = """
import server.loading
from artifacts.errors import SessionError
from server.cli import main

opened = server.loading.open_session
sessions = 0

def open_failing(*arguments, **options):
    global sessions
    sessions += 1
    if sessions > 1:
        raise SessionError("The session cannot be had again.")
    session = opened(*arguments, **options)

    def fail(rows):
        raise SessionError("The step failed.")

    steps = iter([session.step] * 2)  # warming up
    session.step = lambda rows: next(steps, fail)(rows)
    return session

server.loading.open_session = open_failing
main()
"""


@pytest.mark.parametrize(
    ("program", "status", "code", "words"),
    [
        (DYING, grpc.StatusCode.UNAVAILABLE, 70, "the engine's thread has ended"),
        (LOST, grpc.StatusCode.INTERNAL, 1, "no variant can be served"),
    ],
    ids=["thread", "last variant"],
)
def test_an_engine_that_serves_nothing_any_more_ends_the_process(
    demo_store: Path,
    launch: Any,
    write_config: Any,
    stub: Any,
    *,
    program: str,
    status: grpc.StatusCode,
    code: int,
    words: str,
) -> None:
    """Who starts processes again is told by the exit code, and a person by the right words."""
    server = launch(write_config(**demo(demo_store, BASELINE)), program=("-c", program))
    server.wait_ready()
    with pytest.raises(grpc.RpcError) as ended:
        stub(server).Complete(long_request(10), timeout=60)
    assert ended.value.code() == status
    assert server.process.wait(30) == code
    assert words in server.log
    assert "hangs" not in server.log


# Artifacts that the disk has changed.


@pytest.mark.parametrize("flags", [(), ("--verify",)], ids=["noticed", "verified"])
def test_a_damaged_artifact_is_built_again(
    demo_store: Path, own_store: Path, launch: Any, write_config: Any, *, stub: Any, flags: Any
) -> None:
    """A changed byte is noticed before it is served, and the variant serves all the same.

    When the file's time gives nothing away, the whole hash does, which is asked for.
    """
    store = Store(own_store)
    manifests = [store.manifest(path.stem) for path in (own_store / "manifests").iterdir()]
    damaged = next(one for one in manifests if "dynamic" in str(one.chain))
    entry = max(damaged.files, key=lambda one: one.size_bytes)
    if flags:
        store.open(damaged.digest)  # this host has a record of it now
    blob = own_store / "blobs" / entry.sha256
    state = blob.stat()
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(entry.size_bytes // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0xFF]))
    if flags:
        os.utime(blob, ns=(state.st_atime_ns, state.st_mtime_ns))

    chain = [{"quantize": {"method": "dynamic"}}]
    # The texts that the store knows already: nothing is measured but the new artifact.
    texts = {"text": str(demo_store.parent / "few.jsonl")}
    server = launch(write_config(**demo(own_store, {"int8": chain}, evaluation=texts)), *flags)
    assert server.wait_ready()["variants"][0]["state"] == "ready"
    assert "damaged" in server.log
    answer = stub(server).Complete(long_request(3), timeout=60)
    assert answer.finish.usage.completion_tokens == 3
    store.open(answer.finish.artifact, verify=True)


# A start that cannot be.


def test_a_taken_port_ends_the_start_with_its_name(
    demo_store: Path, launch: Any, write_config: Any
) -> None:
    """Both listeners tell which port it is and what to do."""
    config = write_config(**demo(demo_store, BASELINE))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flag, field in (("--grpc-port", "--grpc-port"), ("--ops-port", "server.ops_port")):
            server = launch(config, flag, port)
            assert server.process.wait(60) == 1
            assert port in server.log
            assert field in server.log
            assert "Traceback" not in server.log


def test_every_config_error_is_told_at_once_and_ends_with_2(
    demo_store: Path, launch: Any, write_config: Any
) -> None:
    """The server's own errors and the optimizer's stand in one list."""
    content = demo(demo_store, {"a": [{"quantise": {}}]}, enigne={}, engine={"slots": 0})
    server = launch(write_config(**content))
    assert server.process.wait(60) == 2
    for path in ("enigne", "engine.slots", "variants.a"):
        assert f"  {path}" in server.log
    assert "'engine'" in server.log
    assert "quantize" in server.log


def test_two_servers_share_a_store(demo_store: Path, launch: Any, write_config: Any) -> None:
    """Reading never locks: a rolling restart has two at a time."""
    config = write_config(**demo(demo_store, BASELINE))
    servers = [launch(config), launch(config)]
    waiting = [threading.Thread(target=server.wait_ready) for server in servers]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join(60)
    assert [state(server, "baseline")["state"] for server in servers] == ["ready", "ready"]
