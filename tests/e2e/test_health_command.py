"""``health`` against a real server, as a container's health check runs it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from server.cli import application
from server.exit_codes import ExitCode
from tests.e2e.conftest import Changing


@pytest.mark.parametrize(
    ("variant", "code", "words"),
    [
        ([], ExitCode.OK, "serving\n"),
        (["baseline"], ExitCode.OK, "serving\n"),
        (["nobody"], ExitCode.FAILURE, "service: is unknown"),
    ],
)
def test_the_exit_code_says_whether_it_serves(
    changing: Changing, variant: list[str], code: ExitCode, words: str
) -> None:
    """The server, a variant of it, and one that it does not have."""
    target = ["--target", changing.server.target]
    result = CliRunner().invoke(application(), ["health", *variant, *target])
    assert result.exit_code == code, result.output
    assert words in result.output


def test_a_variant_that_was_unloaded_does_not_serve(changing: Changing) -> None:
    """Although the server does."""
    from protos import admin_pb2

    changing.admin.UnloadVariant(admin_pb2.UnloadVariantRequest(variant="int8"), timeout=60)
    try:
        target = ["--target", changing.server.target]
        result = CliRunner().invoke(application(), ["health", "int8", *target])
        assert result.exit_code == ExitCode.FAILURE
        assert "not serving" in result.output
    finally:
        list(changing.admin.LoadVariant(admin_pb2.LoadVariantRequest(name="int8"), timeout=120))


def test_nobody_there_is_another_exit_code() -> None:
    """So that a supervisor can tell a start from a fault."""
    result = CliRunner().invoke(application(), ["health", "--target", "127.0.0.1:9"])
    assert result.exit_code == ExitCode.UNREACHABLE
