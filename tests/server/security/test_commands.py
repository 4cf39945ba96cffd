"""The commands that ask a server: tokens and authorities, as a user gives them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.exit_codes import ExitCode

if TYPE_CHECKING:
    from server.listeners import Listeners
    from tests.server.security.conftest import Authority, Listen

pytestmark = pytest.mark.timeout(60)

SECRET = "a secret of at least sixteen"  # noqa: S105 - of this test alone
ROOT = Path(__file__).parents[3]


async def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the program in a process of its own; status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "server.cli", *arguments),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


@pytest.fixture
async def server(listen: Listen, authority: Authority, tmp_path: Path) -> Listeners:
    """Encrypted, and asks for a token that may generate and not read."""
    certificate, key = authority.sign("server").write(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "secret").write_text(SECRET)
    token = {"client": "a", "file": str(tmp_path / "secret"), "rights": ["generate"]}
    tls = {"certificate": str(certificate), "key": str(key)}
    return await listen(tls=tls, tokens=[token])


@pytest.fixture
def where(server: Listeners, tmp_path: Path) -> list[str]:
    """How to reach it."""
    target = f"localhost:{server.addresses.grpc_port}"
    return ["--target", target, "--ca", str(tmp_path / "ca.pem")]


async def test_generate_presents_its_token_over_tls(where: list[str]) -> None:
    """From the option or from the environment."""
    prompt = ["generate", "--prompt", "def f", "--max-tokens", "3"]
    for arguments, environment in (
        (["--token", SECRET], {}),
        ([], {"INFERENCE_UNLIMITED_TOKEN": SECRET}),
    ):
        status, output, errors = await run(*prompt, *where, *arguments, **environment)
        assert (status, errors) == (ExitCode.OK, "")
        assert output.strip()


@pytest.mark.parametrize("command", [["generate", "--prompt", "a"], ["variants"]])
async def test_refusals_are_told_without_the_secret(where: list[str], command: list[str]) -> None:
    """No token, an unknown one, one that does not allow it."""
    status, _, errors = await run(*command, *where)
    assert status == ExitCode.FAILURE
    assert "unauthenticated: authorization: no token is presented" in errors
    status, _, errors = await run(*command, *where, "--token", "x" * 20)
    assert status == ExitCode.FAILURE
    assert "the token is unknown" in errors
    assert "x" * 20 not in errors
    if command == ["variants"]:
        status, _, errors = await run(*command, *where, "--token", SECRET)
        assert status == ExitCode.FAILURE
        assert "permission_denied: authorization: this needs the right 'read'" in errors
        assert SECRET not in errors


async def test_an_untrusted_server_is_not_talked_to(
    bench: Any, server: Listeners, stranger: Authority, tmp_path: Path
) -> None:
    """Without --ca, or with another one, nothing is sent to it."""
    target = f"localhost:{server.addresses.grpc_port}"
    (tmp_path / "other.pem").write_bytes(stranger.certificate)
    for how in ([], ["--ca", str(tmp_path / "other.pem")]):
        status, _, errors = await run(
            "generate", "--prompt", "a", "--target", target, "--token", SECRET, *how
        )
        assert status == ExitCode.UNREACHABLE
        assert SECRET not in errors
    assert not bench.engine.submits


async def test_serve_refuses_to_be_public_without_a_token(tmp_path: Path) -> None:
    """The process ends with the sentence, before it builds anything."""
    environment = {
        "INFERENCE_UNLIMITED_STORE": str(tmp_path / "store"),
        "INFERENCE_UNLIMITED_SERVER__GRPC_PORT": "0",
        "INFERENCE_UNLIMITED_SERVER__HTTP_PORT": "0",
        "INFERENCE_UNLIMITED_SERVER__OPS_PORT": "0",
    }
    status, output, errors = await run("serve", "--host", "0.0.0.0", **environment)  # noqa: S104
    assert status == ExitCode.FAILURE
    assert "server.host: others reach 0.0.0.0, and nobody is asked for a token." in errors
    assert "server.allow_anonymous" in errors
    assert "gRPC " not in output
