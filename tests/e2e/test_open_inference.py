"""Readiness by the Open Inference Protocol, as traffic moves and as the server leaves."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import admin_pb2, admin_pb2_grpc
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from server.comparison.server_process import ServerProcess
from tests.server.rpc.infer_requests import infer
from tests.slow_reading import NARROW

LONG = {"max_tokens": 800, "ignore_eos": True}


@pytest.fixture
def server(demo_store: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """The embedded demo with all variants ready."""
    with ServerProcess(
        None,
        stderr=tmp_path / "server.log",
        environment={"INFERENCE_UNLIMITED_STORE": str(demo_store)},
    ) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as channel:
        yield channel


def ready(stub: Any, *models: str) -> list[bool]:
    """Of the server, and of some models."""
    return [
        stub.ServerReady(oip.ServerReadyRequest()).ready,
        *(stub.ModelReady(oip.ModelReadyRequest(name=name)).ready for name in models),
    ]


def test_a_server_without_its_first_variant_is_ready(
    server: ServerProcess, channel: grpc.Channel
) -> None:
    """Whoever takes the traffic is who counts, for every face that tells."""
    admin: Any = admin_pb2_grpc.AdminStub(channel)
    stub: Any = oip_grpc.GRPCInferenceServiceStub(channel)
    admin.Promote(admin_pb2.PromoteRequest(variant="int8"))
    stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="baseline"))
    assert ready(stub, "routed", "baseline", "int8") == [True, True, False, True]
    assert server.get("/healthz")[0] == 200
    answered = stub.ModelInfer(infer(model="routed", sampling={"max_tokens": 2}), timeout=30)
    assert answered.parameters["variant"].string_param == "int8"
    stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="baseline"), timeout=120)
    assert ready(stub, "baseline") == [True, True]


def test_a_draining_server_is_not_ready(server: ServerProcess, channel: grpc.Channel) -> None:
    """It ends what it has, and says to everybody else that it takes no more."""
    stub: Any = oip_grpc.GRPCInferenceServiceStub(channel)
    assert ready(stub, "routed", "baseline") == [True, True, True]
    # The server listens until its last answer is read, so it is read after the questions.
    with grpc.insecure_channel(server.target, options=NARROW) as narrow:
        stream = oip_grpc.GRPCInferenceServiceStub(narrow).ModelStreamInfer(
            iter([infer(flags={"stream": True}, sampling=LONG)])
        )
        first = next(stream)
        assert not first.error_message
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.get("/healthz")[0] == 503 or None, 10)
        assert ready(stub, "routed", "baseline") == [False, False, False]
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(infer())
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        last = list(stream)[-1]
    assert last.error_message == ""
    assert last.infer_response.parameters["triton_final_response"].bool_param
    assert server.process.wait(60) == 0
