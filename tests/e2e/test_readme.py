"""What the README shows is what happens: its config errors and its Python example, for real."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.comparison.server_process import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, needle: str) -> str:
    """The one code block of a language that contains ``needle``."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (found,) = (text for text in blocks if needle in text)
    return str(found)


def test_the_shown_mistakes_are_answered_as_shown(tmp_path: Path) -> None:
    """All four are told at once, in these words."""
    (tmp_path / "config.yaml").write_text(block("yaml", "quantise"), encoding="utf-8")
    served = subprocess.run(
        [sys.executable, "-m", "server.cli", "serve", "config.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert served.returncode == 2
    assert served.stderr == block("text", "4 errors")


def test_the_python_example_prints_a_completion(demo_store: Path, launch: Any) -> None:
    """A new user's first program works as it stands, but for the port."""
    server = launch(None, environment={"INFERENCE_UNLIMITED_STORE": str(demo_store)})
    server.wait_ready()
    program = block("python", "InferenceStub")
    assert "127.0.0.1:50051" in program
    ran = subprocess.run(
        [sys.executable, "-c", program.replace("127.0.0.1:50051", server.target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    text, _, finish = ran.stdout.partition("\nreason:")
    assert text.strip()
    assert 'variant: "int4"' in finish
    assert "seed: 7" in finish


@pytest.mark.parametrize("command", ["generate", "variants"])
def test_the_shown_commands_answer(demo_store: Path, launch: Any, command: str) -> None:
    """Each command that the quick start shows, against a real server."""
    server = launch(None, environment={"INFERENCE_UNLIMITED_STORE": str(demo_store)})
    server.wait_ready()
    shown = rf"^\$ \.venv/bin/inference-unlimited ({command}\b.*)$"
    lines = re.findall(shown, README, re.MULTILINE)
    assert lines
    for line in lines:
        arguments = [word for word in shlex.split(line) if word != "127.0.0.1:50051"]
        arguments = [word for word in arguments if word != "--target"]
        ran = subprocess.run(
            [sys.executable, "-m", "server.cli", *arguments, "--target", server.target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip()
