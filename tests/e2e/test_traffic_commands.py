"""``traffic`` against a real server, as a person would run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from protos import admin_pb2 as pb
from server.cli import application
from server.exit_codes import ExitCode
from tests.e2e.conftest import Changing

INT4 = '[{"quantize": {"method": "weight_only", "bits": 4}}]'


@pytest.fixture(autouse=True)
def untouched(changing: Changing) -> None:
    """Every test begins with the default's traffic."""
    changing.admin.SetTraffic(pb.SetTrafficRequest(), timeout=30)


def run(changing: Changing, *arguments: str, stdin: str | None = None) -> Result:
    runner = CliRunner(env={"COLUMNS": "160"})
    target = ("--target", changing.server.target)
    return runner.invoke(application(), ["traffic", *arguments, *target], stdin)


def said(result: Result) -> str:
    assert result.exit_code == ExitCode.OK, result.output
    return result.stdout


def test_traffic_is_set_shown_moved_and_taken_back(changing: Changing) -> None:
    """As lines for a person, and as JSON for a program."""
    assert said(run(changing, "show")) == "the first variant takes all\n"
    split = "baseline  weight 9  90.0%\nint8  weight 1  10.0%\n"
    shadow = "int8  is the shadow of 25.0% of the answers\n"
    arguments = ("set", "baseline=9", "int8=1", "--shadow", "int8", "--fraction", "0.25")
    assert said(run(changing, *arguments)) == split + shadow
    assert said(run(changing, "show")) == split + shadow
    assert said(run(changing, "promote", "int8")) == "int8  weight 1  100.0%\n"
    assert said(run(changing, "rollback")) == split + shadow
    assert json.loads(said(run(changing, "show", "--json"))) == {
        "weights": {"baseline": 9.0, "int8": 1.0},
        "shadow": {"candidate": "int8", "fraction": 0.25},
    }
    assert said(run(changing, "set")) == "the first variant takes all\n"


@pytest.mark.parametrize("weight", ["int8", "=1", "int8=", "int8=many", "1"])
def test_what_is_no_weight_is_told(changing: Changing, weight: str) -> None:
    """Before anybody is asked."""
    result = run(changing, "set", weight)
    assert result.exit_code == ExitCode.USAGE
    assert "NAME=WEIGHT" in result.output


def test_a_refusal_is_told_with_its_status(changing: Changing) -> None:
    """On standard error, with exit code 1."""
    result = run(changing, "promote", "nobody")
    assert result.exit_code == ExitCode.FAILURE
    assert result.stderr.startswith("error: not_found: variant: 'nobody' is unknown")
    result = run(changing, "unload", "baseline")
    assert result.stderr.startswith("error: failed_precondition: variant 'baseline' takes routed")


def test_a_variant_is_loaded_compared_and_unloaded(changing: Changing, tmp_path: Path) -> None:
    """With its progress on standard error, the chain as text, from a file or from a pipe."""
    loaded = run(changing, "load", "typed", "--chain", INT4)
    assert said(loaded).startswith("typed serves: 4.4 MB, artifact ")
    assert "typed: ready 100%" in loaded.stderr
    for _ in range(2):
        arguments = ("generate", "--prompt", "def", "--target", changing.server.target)
        CliRunner().invoke(application(), [*arguments, "--variant", "typed"])
    table = said(run(changing, "compare", "typed"))
    assert "typed against baseline" in table
    assert "engine time per token, typed" in table
    assert "SetTraffic a shadow" in table
    found = json.loads(said(run(changing, "compare", "typed", "--json")))
    assert found["candidate_requests"] == 2
    assert said(run(changing, "unload", "typed")) == "typed is unloaded\n"
    chain = tmp_path / "chain.json"
    chain.write_text(INT4)
    assert "typed serves" in said(run(changing, "load", "typed", "--chain", f"@{chain}"))
    assert said(run(changing, "unload", "typed"))
    assert "typed serves" in said(run(changing, "load", "typed", "--chain", "-", stdin=INT4))
    assert said(run(changing, "unload", "typed"))
    assert "typed serves" in said(run(changing, "load", "typed"))


def test_a_variant_is_loaded_with_drafts(changing: Changing, tmp_path: Path) -> None:
    """As text or from a file; it is told who drafts, and nothing where nobody does."""
    asked = tmp_path / "speculation.json"
    asked.write_text('{"method": "draft", "variant": "int8"}')
    for speculation, told in (
        ('{"method": "prompt_lookup"}', ", drafts by prompt_lookup\n"),
        (f"@{asked}", ", drafts by int8\n"),
        ("null", ""),
    ):
        arguments = ("load", "drafting", "--chain", "[]", "--speculation", speculation)
        line = said(run(changing, *arguments))
        assert line.endswith(told)
        assert ("drafts" in line) == bool(told)
        assert said(run(changing, "unload", "drafting"))
    result = run(changing, "load", "drafting", "--speculation", "@/nowhere.json")
    assert result.exit_code == ExitCode.USAGE
    assert "--speculation" in result.output
    result = run(changing, "load", "drafting", "--speculation", '{"method": "draft"}')
    assert result.exit_code == ExitCode.FAILURE
    assert "error: invalid_argument: speculation_json: " in result.stderr


def test_a_load_that_fails_says_why(changing: Changing) -> None:
    """An error of the chain, of the file that it is in, and of the budget."""
    result = run(changing, "load", "failing", "--chain", '[{"polish": {}}]')
    assert result.exit_code == ExitCode.FAILURE
    assert "There is no stage 'polish'." in result.stderr
    result = run(changing, "load", "failing", "--chain", "@/nowhere/chain.json")
    assert result.exit_code == ExitCode.USAGE
    result = run(changing, "load", "failing", "--chain", INT4, "--budget", '{"kl_mean": 0.0001}')
    assert result.exit_code == ExitCode.FAILURE
    assert "error: failing: It is over its budget: kl_mean is" in result.stderr


def test_help_answers_at_once() -> None:
    """Without gRPC or anything else that only talking to a server needs."""
    program = (
        "import sys, server.cli; server.cli.application(); "
        "print([name for name in ('grpc', 'google.protobuf', 'rich.progress', 'numpy') "
        "if name in sys.modules])"
    )
    asked = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert asked.stdout == "[]\n"
