"""gRPC for Node.js against a real server: messages from the .proto files, no stub of ours."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.comparison.server_process import ServerProcess
from tests.server.security.conftest import Authority

pytestmark = pytest.mark.system

SCRIPT = Path(__file__).parent / "javascript" / "client.mjs"
PROMPT = "def fibonacci(n):"
VARIANTS = ["baseline", "int8", "int4"]
OF_THE_APP = "the secret of an app"


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


def see(
    server: ServerProcess,
    scenario: str,
    *arguments: str,
    target: str = "",
    environment: Mapping[str, str] | None = None,
) -> Any:
    """What the client saw."""
    done = subprocess.run(
        ["node", str(SCRIPT), target or server.target, scenario, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_lists_the_variants(server: ServerProcess) -> None:
    """Enums by name, in the order of the config."""
    seen = see(server, "variants")
    assert [variant["name"] for variant in seen] == VARIANTS
    assert {variant["state"] for variant in seen} == {"VARIANT_STATE_READY"}
    assert [variant["is_default"] for variant in seen] == [True, False, False]


def test_a_stream_is_the_whole_answer_in_pieces(server: ServerProcess) -> None:
    """Of every variant: the same text, many messages, one finish, one status."""
    seen = see(server, "generate")
    assert list(seen) == VARIANTS
    for variant, answers in seen.items():
        streamed, whole = answers["streamed"], answers["whole"]
        assert streamed["text"] == whole["text"] != ""
        assert streamed["messages"] > 5
        (finish,) = streamed["finishes"]
        assert finish["variant"] == whole["finish"]["variant"] == variant
        assert finish["reason"] in ("FINISH_REASON_STOP", "FINISH_REASON_LENGTH")
        assert finish["usage"]["completion_tokens"] == len(whole["token_ids"]) <= 16
        assert [status["status"] for status in streamed["statuses"]] == ["OK"]


def test_no_field_is_spoiled_on_the_way(server: ServerProcess) -> None:
    """A seed of 64 bits comes back whole, zero is not unset, and a map has numbers as keys."""
    seen = see(server, "fields")
    plain, biased = seen["plain"], seen["biased"]
    assert plain["finish"]["seed"] == str(2**64 - 1)
    assert len(plain["logprobs"]) == len(plain["token_ids"])
    assert all(entry["logprob"] < 0 and entry["top"] == [] for entry in plain["logprobs"])
    assert plain["token_ids"][0] not in biased["token_ids"]


def test_a_conversation_is_answered(server: ServerProcess) -> None:
    """By the model's own template, in pieces and whole."""
    seen = see(server, "chat")
    assert seen["streamed"]["text"] == seen["whole"]["text"] != ""
    assert seen["whole"]["finish"]["usage"]["prompt_tokens"] > 0


def test_an_answer_keeps_to_a_schema(server: ServerProcess) -> None:
    """What comes is a document of it."""
    seen = see(server, "structured")
    document = json.loads(seen["text"])
    assert list(document) == ["n"]
    assert isinstance(document["n"], int)


def test_many_streams_share_a_connection(server: ServerProcess) -> None:
    """Each has its own finish, and equal questions have equal answers."""
    seen = see(server, "concurrent")
    assert len(seen) == 12
    for index, streamed in enumerate(seen):
        (finish,) = streamed["finishes"]
        assert finish["variant"] == VARIANTS[index % 3]
        assert streamed["text"] == seen[index % 3]["text"]


def test_errors_name_the_field(server: ServerProcess) -> None:
    """With gRPC's status, in a unary call and in a stream."""
    seen = see(server, "errors")
    assert seen["variant"]["status"] == "NOT_FOUND"
    assert "use one of: baseline, int8, int4" in seen["variant"]["message"]
    assert seen["sampling"]["status"] == "INVALID_ARGUMENT"
    assert "sampling.top_p" in seen["sampling"]["message"]
    assert seen["streamed"] == [seen["sampling"]]
    assert [status["status"] for status in seen["deadline"]] == ["DEADLINE_EXCEEDED"]


def test_leaving_a_stream_frees_the_engine(server: ServerProcess) -> None:
    """Cancelled after the first message; the server counts it and is idle soon."""

    def count(line_start: str, having: str = "") -> float:
        lines = server.get("/metrics")[1].splitlines()
        found = [line for line in lines if line.startswith(line_start) and having in line]
        assert found or having
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    before = count("inference_requests_total{", 'status="cancelled"')
    seen = see(server, "cancel")
    assert [status["status"] for status in seen["statuses"]] == ["CANCELLED"]
    assert seen["finishes"] == []
    server.wait_for(
        lambda: count("inference_requests_total{", 'status="cancelled"') == before + 1 or None, 10
    )
    server.wait_for(lambda: count("inference_running_requests{") == 0 or None, 10)


def test_it_speaks_the_open_inference_protocol(server: ServerProcess) -> None:
    """From the same descriptors that KServe's clients are made of."""
    seen = see(server, "open_inference")
    assert seen["id"] == "from JavaScript"
    assert seen["output"] == "text_output"
    assert seen["text"].startswith(PROMPT)
    assert seen["text"] != PROMPT


def test_it_speaks_tls_and_sends_a_token(demo_store: Path, tmp_path: Path) -> None:
    """Node's TLS against ours: an answer with both, a refusal without either."""
    authority = Authority("an authority")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate)
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(Authority("a stranger").certificate)
    authority.sign("server").write(tmp_path, "server")
    config = tmp_path / "config.yaml"
    section = {
        "tls": {"certificate": "server.pem", "key": "server.key"},
        "tokens": [{"client": "app", "env": "APP", "rights": ["generate", "read"]}],
    }
    config.write_text(
        yaml.safe_dump({"model": "demo", "variants": {"baseline": []}} | {"server": section})
    )
    with ServerProcess(
        config,
        stderr=tmp_path / "server.log",
        environment={"INFERENCE_UNLIMITED_STORE": str(demo_store), "APP": OF_THE_APP},
    ) as server:
        server.wait_ready()
        target = server.target.replace("127.0.0.1", "localhost")

        def ask(authority_file: Path | None, token: str) -> Any:
            trusted = [] if authority_file is None else [str(authority_file)]
            return see(server, "chat", *trusted, target=target, environment={"TOKEN": token})

        assert ask(ca, OF_THE_APP)["whole"]["text"]
        assert ask(ca, "a guess")["whole"]["status"] == "UNAUTHENTICATED"
        assert ask(ca, "")["whole"]["status"] == "UNAUTHENTICATED"
        assert ask(stranger, OF_THE_APP)["whole"]["status"] == "UNAVAILABLE"
        assert ask(None, OF_THE_APP)["whole"]["status"] == "UNAVAILABLE"
