"""A real server process that asks for tokens over TLS, and renews its certificate."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from server.comparison.server_process import ROOT
from tests.server.security.conftest import Authority

SECRETS = {"app": "the secret of the app", "reader": "the secret of the reader"}


def test_a_server_with_tls_and_tokens(
    demo_store: Path, tmp_path: Path, write_config: Callable[..., Path], launch: Any
) -> None:
    """From the config file: answers, refusals, a renewal, and no secret in what it wrote."""
    authority = Authority("an authority")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    authority.sign("first").write(tmp_path, "server")
    (tmp_path / "app").write_text(SECRETS["app"])
    config = write_config(
        model="demo",
        variants={"baseline": []},
        store=str(demo_store),
        engine={"max_length": 128},
        server={
            "tls": {"certificate": "server.pem", "key": "server.key"},
            "tokens": [
                {"client": "app", "file": "app", "rights": ["generate"]},
                {"client": "reader", "env": "READER", "rights": ["read"]},
            ],
        },
    )
    server = launch(config, environment={"READER": SECRETS["reader"]})
    server.wait_ready()
    trusted = grpc.ssl_channel_credentials(authority.certificate)

    def ask(client: str | None) -> str:
        """A new connection's answer, or the name of its refusal."""
        secret = SECRETS.get(client or "", client)
        metadata = () if secret is None else (("authorization", f"Bearer {secret}"),)
        options = (("grpc.use_local_subchannel_pool", 1),)
        target = server.target.replace("127.0.0.1", "localhost")
        with grpc.secure_channel(target, trusted, options=options) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            request = pb.GenerateRequest(text="def f", sampling=pb.SamplingParameters(max_tokens=4))
            try:
                return str(stub.Complete(request, metadata=metadata, timeout=30).text)
            except grpc.RpcError as error:
                return str(error.code().name)

    text = ask("app")
    assert text not in ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE")
    assert ask("reader") == "PERMISSION_DENIED"
    assert ask(None) == ask("someone else's secret") == "UNAUTHENTICATED"
    authority.sign("second").write(tmp_path, "server")
    assert ask("app")
    server.wait_for(lambda: "certificate renewed" in server.log or None)
    (tmp_path / "server.pem").write_text("torn")
    for _ in range(3):
        assert ask("app") not in ("UNAUTHENTICATED", "UNAVAILABLE")
    assert server.log.count("certificate is not renewed") == 1

    shown = subprocess.run(
        [
            *(sys.executable, "-m", "server.cli", "variants", "--ca", str(tmp_path / "ca.pem")),
            *("--target", server.target.replace("127.0.0.1", "localhost")),
            *("--token", SECRETS["reader"]),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "baseline" in shown.stdout
    status, metrics = server.get("/metrics")  # in the clear, and without a token
    assert status == 200
    written = server.log + "\n".join(server.lines) + metrics
    assert not [secret for secret in SECRETS.values() if secret in written]
    assert "someone else's secret" not in written
    assert server.stop() == 0
