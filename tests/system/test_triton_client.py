"""Triton's own client library against a real server, in an environment and process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.comparison.server_process import ServerProcess

pytestmark = pytest.mark.system

SCRIPT = Path(__file__).with_name("triton_client.py")
PROMPT = "def fibonacci(n):"


@pytest.fixture(scope="module")
def server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The embedded demo with all variants ready."""
    with ServerProcess(
        None,
        stderr=tmp_path_factory.mktemp("server") / "server.log",
        environment={"INFERENCE_UNLIMITED_STORE": str(demo_store)},
    ) as server:
        server.wait_ready()
        yield server


def see(server: ServerProcess, scenario: str) -> Any:
    """What the client saw."""
    done = subprocess.run(
        [os.environ["TRITON_PYTHON"], str(SCRIPT), server.target, scenario],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=SCRIPT.parent,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def is_idle(server: ServerProcess) -> bool | None:
    lines = server.get("/metrics")[1].splitlines()
    running = [line for line in lines if line.startswith("inference_running_requests{")]
    assert running
    return all(line.endswith(" 0.0") for line in running) or None


def test_it_finds_server_and_models(server: ServerProcess) -> None:
    """Live, ready and described, with a client that is as new as it must be."""
    seen = see(server, "meta")
    major, minor = map(int, seen["tritonclient"].split(".")[:2])
    assert (major, minor) >= (2, 73)
    assert (seen["live"], seen["ready"], seen["models"]) == (True, True, [True] * 3)
    assert seen["server"] == "inference-unlimited"
    assert "sampling_parameters" in seen["inputs"]
    assert seen["outputs"][0] == "text_output"


def test_it_infers_from_every_model(server: ServerProcess) -> None:
    """With outputs by name and by flag, an id, a priority, both kinds of timeout and gzip."""
    seen = see(server, "infer")
    for model, answer in seen.items():
        assert answer["id"] == f"of {model}"
        assert answer["variant"] == ("baseline" if model == "routed" else model)
        assert answer["finish_reason"] in ("stop", "length")
        assert 0 < answer["tokens"] <= 16
        assert answer["logprob"] < 0
        assert answer["text"]
        assert not answer["text"].startswith(PROMPT)
    assert seen["routed"]["text"] == seen["baseline"]["text"]


def test_choices_are_elements_of_the_output(server: ServerProcess) -> None:
    """Three texts, drawn differently, each behind the prompt."""
    texts = see(server, "choices")
    assert len(set(texts)) == 3
    assert all(text.startswith(PROMPT) and text != PROMPT for text in texts)


def test_it_infers_asynchronously(server: ServerProcess) -> None:
    """Several at once, each told to a callback; the same question has the same greedy answer."""
    texts = see(server, "asynchronous")["texts"]
    assert len(texts) == 4
    assert len(set(texts)) == 1


def test_it_streams_from_several_models_at_once(server: ServerProcess) -> None:
    """The pieces make the whole, models take turns, and each is final once."""
    seen = see(server, "stream")
    assert seen["errors"] == []
    assert seen["texts"] == seen["alone"]
    assert all(steps > 5 for steps in seen["steps"].values())
    assert seen["empty_finals"] == 1
    assert seen["left"] == 0
    assert seen["changes"] > 5


def test_errors_say_what_is_wrong(server: ServerProcess) -> None:
    """With gRPC's status and the sentence; in a stream by the sentence alone, unless asked."""
    seen = see(server, "errors")
    expected = {
        "model": ("NOT_FOUND", "use one of: baseline, int8, int4"),
        "version": ("NOT_FOUND", "model_version: '3' is unknown"),
        "sampling": ("INVALID_ARGUMENT", "sampling.top_p"),
        "name": ("INVALID_ARGUMENT", "inputs.strem: is not known"),
        "shape": ("INVALID_ARGUMENT", "has shape [2]"),
        "memory": ("INVALID_ARGUMENT", "parameters.shared_memory"),
        "sequence": ("INVALID_ARGUMENT", "parameters.sequence_id: is not served"),
        "timeout": ("DEADLINE_EXCEEDED", "the deadline passed"),
        "deadline": ("DEADLINE_EXCEEDED", ""),
        "as_status": ("NOT_FOUND", "'nobody' is unknown"),
        "config": ("UNIMPLEMENTED", ""),
        "statistics": ("UNIMPLEMENTED", ""),
    }
    told = seen.pop("in_stream")
    assert told["status"] == "None"
    assert "'nobody' is unknown" in told["message"]
    assert set(seen) == set(expected)
    for name, (status, sentence) in expected.items():
        assert seen[name]["status"] == f"StatusCode.{status}", (name, seen[name])
        assert sentence in seen[name]["message"]


def test_leaving_frees_the_engine(server: ServerProcess) -> None:
    """A stream and a whole answer, both in the middle."""
    seen = see(server, "cancel")
    assert seen["first"]
    assert seen["finals"] == 0
    assert seen["stream"] == ["StatusCode.CANCELLED"]
    assert seen["whole"]["status"] == "StatusCode.CANCELLED"
    assert server.wait_for(lambda: is_idle(server), 10)
    cancelled = [
        line
        for line in server.get("/metrics")[1].splitlines()
        if line.startswith("inference_requests_total{") and 'status="cancelled"' in line
    ]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in cancelled) >= 2


def test_it_unloads_and_loads(server: ServerProcess) -> None:
    """The index tells; what takes routed traffic stays."""
    seen = see(server, "repository")
    everything = dict.fromkeys(("routed", "baseline", "int8", "int4"), "READY")
    assert seen["before"] == everything
    assert "takes routed traffic" in seen["routed"]["message"]
    assert seen["unloaded"] == {**everything, "int4": "UNAVAILABLE"}
    assert seen["ready"] is False
    assert seen["infer"]["status"] == "StatusCode.UNAVAILABLE"
    assert seen["loaded"] == everything
    assert seen["text"].startswith(PROMPT)
    assert "parameters.config: is not known" in seen["config"]["message"]
