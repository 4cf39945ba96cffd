"""The examples of docs/clients.md do what they say, each in its client's own environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.comparison.server_process import ROOT, ServerProcess

pytestmark = pytest.mark.system

PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
MODULES = Path(__file__).parent / "javascript" / "node_modules"


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


def example(server: ServerProcess, language: str, having: str) -> str:
    """The one block that mentions something, with this server's ports."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if having in block)
    return (
        str(block)
        .replace("127.0.0.1:50051", server.target)
        .replace("http://127.0.0.1:8000/v1", server.http_url)
    )


def run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_javascript(server: ServerProcess, tmp_path: Path) -> None:
    """A module beside its packages, which reads the .proto file from here."""
    (tmp_path / "node_modules").symlink_to(MODULES)
    script = tmp_path / "example.mjs"
    script.write_text(example(server, "javascript", "grpc-js"), encoding="utf-8")
    assert len(run("node", str(script))) > 10


def test_triton(server: ServerProcess) -> None:
    """The answer begins with the prompt."""
    told = run(os.environ["TRITON_PYTHON"], "-c", example(server, "python", "tritonclient"))
    assert told.startswith("def fibonacci(n):")
    assert len(told) > len("def fibonacci(n):\n")


def test_openai(server: ServerProcess) -> None:
    """The answer is of the letters that it was held to."""
    assert re.fullmatch(r"[a-z ]+", run(sys.executable, "-c", example(server, "python", "openai")))
