"""What an engine does to its process, and a model to one request: servers with a planted fault."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import yaml

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from server.comparison.server_process import ServerProcess
from tests.survival.conftest import Survivor, demo_config

Start = Callable[..., ServerProcess]

# The session of each variant does `fault` before its steps, once it has warmed up.
PLANTED = """
import os, signal
import numpy as np
import server.loading
from artifacts.errors import SessionError
from server.cli import main

opened = server.loading.open_session
BAD = 77  # a token that no other prompt has

def open_planted(*arguments, **options):
    session = opened(*arguments, **options)
    step = session.step
    poisoned = set()
    state = {{"steps": 0}}

    def planted(rows):
        state["steps"] += 1
        {fault}

    session.step = planted
    return session

server.loading.open_session = open_planted
main()
"""
CRASHES = """
        if state["steps"] > 6:
            os.kill(os.getpid(), signal.SIGSEGV)
        return step(rows)
"""
FAILS = """
        if any(BAD in row.tokens for row in rows):
            raise SessionError("planted")
        return step(rows)
"""
POISONS = """
        scores = step(rows)
        asking = [row for row in rows if row.logits]
        first = 0
        for row in asking:
            if BAD in row.tokens:
                poisoned.add(row.slot)
            elif row.start == 0:
                poisoned.discard(row.slot)
            if row.slot in poisoned:
                scores.logits[first : first + row.logits] = np.nan
                scores.best_logits[first : first + row.logits] = np.nan
            first += row.logits
        return scores
"""


@pytest.fixture
def start(demo_store: Path, tmp_path: Path) -> Iterator[Start]:
    """Start servers over one store."""
    config = tmp_path / "config.yaml"
    content = demo_config(demo_store, variants={"baseline": []})
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    with ExitStack() as stack:

        def begin(fault: str | None = None) -> ServerProcess:
            options = {} if fault is None else {"program": ("-c", PLANTED.format(fault=fault))}
            number = len(list(tmp_path.iterdir()))
            log = tmp_path / f"{number}.log"
            server = stack.enter_context(ServerProcess(config, stderr=log, **options))
            server.wait_ready()
            return server

        yield begin


def request(*ids: int, tokens: int = 20) -> pb.GenerateRequest:
    sampling = pb.SamplingParameters(max_tokens=tokens, ignore_eos=True, temperature=0)
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=sampling)


def complete(server: ServerProcess, asked: pb.GenerateRequest) -> list[int]:
    with grpc.insecure_channel(server.target) as channel:
        answer = inference_pb2_grpc.InferenceStub(channel).Complete(asked, timeout=60)
    return list(answer.token_ids)


def test_a_native_crash_ends_streams_and_the_next_server_serves_at_once(start: Start) -> None:
    """Clients hear UNAVAILABLE, the supervisor hears the signal, and nothing is built again."""
    server = start(CRASHES)
    with grpc.insecure_channel(server.target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        streams = [stub.Generate(request(10, index, tokens=100), timeout=60) for index in (5, 6, 7)]
        for stream in streams:
            with pytest.raises(grpc.RpcError) as cut:
                list(stream)
            assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.process.wait(30) == -signal.SIGSEGV
    begun = time.monotonic()
    again = start()
    assert len(complete(again, request(10, 5))) == 20
    assert '"event": "stage"' not in again.log, "something was built"
    assert time.monotonic() - begun < 60
    assert again.stop() == 0


def test_a_step_that_fails_ends_its_requests_and_no_others(start: Start) -> None:
    """INTERNAL with a number that the log has; whoever comes next is served as before."""
    server = start(FAILS)
    expected = complete(server, request(10, 5))
    with pytest.raises(grpc.RpcError) as failed:
        complete(server, request(10, 77))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    log_id = failed.value.details().split("log_id=")[1]
    assert log_id in server.log
    assert "planted" not in failed.value.details()
    assert complete(server, request(10, 5)) == expected
    Survivor(server).settle()
    assert server.stop() == 0


def test_a_request_that_makes_the_model_produce_nan_hurts_only_itself(start: Start) -> None:
    """In the same steps others get the texts that they get alone."""
    server = start(POISONS)
    prompts = [request(10, index, tokens=60) for index in (5, 6, 7)]
    alone = [complete(server, prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = [pool.submit(complete, server, prompt) for prompt in prompts]
        poisoned = pool.submit(complete, server, request(10, 77, tokens=60))
        assert [answer.result() for answer in together] == alone
        with pytest.raises(grpc.RpcError) as failed:
            poisoned.result()
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert complete(server, prompts[0]) == alone[0]
    assert server.stop() == 0
