"""TLS as clients meet it: real handshakes on both public listeners, also while files change."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import threading
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from server.certificates import CertificateFiles, Certificates
from server.errors import ListenError
from tests.server.security.conftest import Authority, Listen, Pair, credentials, trusting

if TYPE_CHECKING:
    from server.listeners import Listeners
    from tests.server.conftest import Bench

Code = grpc.StatusCode
ASKED = pb.GenerateRequest(text="def f", sampling=pb.SamplingParameters(max_tokens=2))


@pytest.fixture
def tls(tmp_path: Path, authority: Authority) -> dict[str, str]:
    """A section with files that a test may replace."""
    certificate, key = authority.sign("first").write(tmp_path, "server")
    return {"certificate": str(certificate), "key": str(key)}


@pytest.fixture
def mutual(tls: dict[str, str], tmp_path: Path, authority: Authority) -> dict[str, str]:
    """The same, and clients need a certificate too."""
    file = tmp_path / "clients.pem"
    file.write_bytes(authority.certificate)
    return {**tls, "client_ca": str(file)}


async def ask_grpc(port: int, how: grpc.ChannelCredentials | None) -> str:
    """The text, from a new connection.

    Raises:
        grpc.aio.AioRpcError: As the server, or the handshake, has it.
    """
    target = f"localhost:{port}"
    # Channels with the same options would share one connection.
    options = (("grpc.use_local_subchannel_pool", 1),)
    channel = (
        grpc.aio.insecure_channel(target, options=options)
        if how is None
        else grpc.aio.secure_channel(target, how, options=options)
    )
    async with channel:
        answer = await pb_grpc.InferenceStub(channel).Complete(ASKED, timeout=10)
        return str(answer.text)


async def ask_http(port: int, context: ssl.SSLContext | None) -> int:
    """The status, from a new connection."""
    scheme = "http" if context is None else "https"
    verify: Any = True if context is None else context
    async with httpx.AsyncClient(verify=verify, trust_env=False) as client:
        url = f"{scheme}://localhost:{port}/v1/completions"
        answer = await client.post(url, json={"prompt": "def f", "max_tokens": 2})
        return answer.status_code


async def shown_http(port: int, authority: Authority, *, sni: bool = True) -> str:
    """The name in the certificate that a new connection sees."""
    return await _shown(port, trusting(authority), "localhost" if sni else "127.0.0.1")


async def shown_grpc(port: int, authority: Authority) -> str:
    """The same of the gRPC port."""
    context = trusting(authority)
    context.set_alpn_protocols(["h2"])
    return await _shown(port, context, "localhost")


async def _shown(port: int, context: ssl.SSLContext, name: str) -> str:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    subject = x509.load_der_x509_certificate(der).subject
    return str(subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def ports_of(listeners: Listeners) -> tuple[int, int]:
    addresses = listeners.addresses
    assert addresses.http_port is not None
    return addresses.grpc_port, addresses.http_port


async def test_both_listeners_are_encrypted(
    listen: Listen, tls: dict[str, str], authority: Authority
) -> None:
    """Whoever trusts the authority is answered over TLS, by name and by address."""
    grpc_port, http_port = ports_of(await listen(tls=tls))
    assert await ask_grpc(grpc_port, credentials(authority))
    assert await ask_http(http_port, trusting(authority)) == 200
    assert await shown_http(http_port, authority, sni=False) == "first"


async def test_a_client_that_trusts_others_says_nothing(
    listen: Listen, tls: dict[str, str], stranger: Authority
) -> None:
    """The handshake fails on the client's side with the wrong authority."""
    grpc_port, http_port = ports_of(await listen(tls=tls))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask_grpc(grpc_port, credentials(stranger))
    assert caught.value.code() is Code.UNAVAILABLE
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        await ask_http(http_port, trusting(stranger))


async def test_plaintext_is_not_answered(
    bench: Bench, listen: Listen, tls: dict[str, str], authority: Authority
) -> None:
    """On a port with TLS nothing is read in the clear, and the next client is served."""
    grpc_port, http_port = ports_of(await listen(tls=tls))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask_grpc(grpc_port, None)
    assert caught.value.code() is Code.UNAVAILABLE
    with pytest.raises(httpx.TransportError):
        await ask_http(http_port, None)
    assert not bench.engine.submits
    assert await ask_grpc(grpc_port, credentials(authority))
    assert await ask_http(http_port, trusting(authority)) == 200


async def test_mutual_tls_asks_clients_for_theirs(
    listen: Listen, mutual: dict[str, str], authority: Authority, stranger: Authority
) -> None:
    """Without a certificate, or with one of another authority, nobody gets through."""
    grpc_port, http_port = ports_of(await listen(tls=mutual))
    known, unknown = authority.sign("client"), stranger.sign("client")
    assert await ask_grpc(grpc_port, credentials(authority, known))
    assert await ask_http(http_port, trusting(authority, known)) == 200
    own: Pair | None
    for own in (None, unknown):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask_grpc(grpc_port, credentials(authority, own))
        assert caught.value.code() is Code.UNAVAILABLE
        with pytest.raises(httpx.TransportError):
            await ask_http(http_port, trusting(authority, own))


async def test_the_operators_listener_stays_plaintext_and_open(
    listen: Listen, mutual: dict[str, str], tmp_path: Path
) -> None:
    """Probes and scrapers have neither certificates nor tokens."""
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    listeners = await listen(tls=mutual, tokens=[{"client": "a", "file": str(secret)}])
    async with httpx.AsyncClient(trust_env=False) as client:
        for path in ("livez", "healthz", "metrics"):
            url = f"http://127.0.0.1:{listeners.addresses.ops_port}/{path}"
            assert (await client.get(url)).status_code == 200


async def test_a_renewed_certificate_is_used_from_the_next_connection(
    bench: Bench, listen: Listen, tls: dict[str, str], authority: Authority, tmp_path: Path
) -> None:
    """New connections see the new one; streams of old connections go on."""
    grpc_port, http_port = ports_of(await listen(tls=tls))
    bench.engine.script = lambda _: [[token] for token in range(70, 76)]
    bench.engine.gate = threading.Semaphore(1)
    url = f"https://localhost:{http_port}/v1/completions"
    content = {"prompt": "def f", "max_tokens": 6, "stream": True}
    async with (
        grpc.aio.secure_channel(f"localhost:{grpc_port}", credentials(authority)) as channel,
        httpx.AsyncClient(verify=trusting(authority), trust_env=False) as client,
    ):
        stream = pb_grpc.InferenceStub(channel).Generate(pb.GenerateRequest(text="def f"))
        begun = [await stream.read()]
        request = client.build_request("POST", url, json=content)
        sending = asyncio.create_task(client.send(request, stream=True))
        await bench.until(lambda: len(bench.engine.running) == 2)
        bench.engine.gate.release()
        async with aclosing(await sending) as answer:
            lines = answer.aiter_lines()
            assert (await anext(lines)).startswith("data: ")
            assert await shown_http(http_port, authority) == "first"
            assert await shown_grpc(grpc_port, authority) == "first"
            authority.sign("second").write(tmp_path, "server")
            assert await shown_http(http_port, authority) == "second"
            assert await shown_http(http_port, authority, sni=False) == "second"
            assert await shown_grpc(grpc_port, authority) == "second"
            for _ in range(20):
                bench.engine.gate.release()
            rest = [line async for line in lines if line]
        while (message := await stream.read()) is not grpc.aio.EOF:
            begun.append(message)
    assert rest[-1] == "data: [DONE]"
    assert begun[-1].finish.usage.completion_tokens == 6


async def test_renewed_clients_authorities_count_too(
    listen: Listen, mutual: dict[str, str], authority: Authority, stranger: Authority
) -> None:
    """Whom clients must be signed by is read again as well, on both listeners."""
    grpc_port, http_port = ports_of(await listen(tls=mutual))
    old, new = authority.sign("client"), stranger.sign("client")
    assert await ask_grpc(grpc_port, credentials(authority, old))
    _replace(mutual["client_ca"], stranger.certificate)
    assert await ask_grpc(grpc_port, credentials(authority, new))
    assert await ask_http(http_port, trusting(authority, new)) == 200
    with pytest.raises(grpc.aio.AioRpcError):
        await ask_grpc(grpc_port, credentials(authority, old))
    with pytest.raises(httpx.TransportError):
        await ask_http(http_port, trusting(authority, old))


@pytest.mark.parametrize("fault", ["torn", "missing", "of another key", "empty", "encrypted"])
async def test_broken_files_leave_the_old_ones_in_use(
    listen: Listen, tls: dict[str, str], authority: Authority, tmp_path: Path, fault: str
) -> None:
    """What cannot be used is told once, however many connect; the next good pair is taken."""
    grpc_port, http_port = ports_of(await listen(tls=tls))
    _damage(tls, authority, fault)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert await shown_http(http_port, authority) == "first"
            assert await shown_grpc(grpc_port, authority) == "first"
    assert [entry["event"] for entry in logs] == ["certificate is not renewed"]
    assert "PRIVATE" not in json.dumps(logs)
    with structlog.testing.capture_logs() as logs:
        authority.sign("third").write(tmp_path, "server")
        assert await shown_http(http_port, authority) == "third"
        assert await shown_grpc(grpc_port, authority) == "third"
    assert [entry["event"] for entry in logs] == ["certificate renewed"]


def test_a_pair_that_is_replaced_file_by_file_is_taken_when_it_is_whole(
    tls: dict[str, str], authority: Authority
) -> None:
    """Between the two replacements nothing fits, which is no reason to give up."""
    certificates = Certificates(CertificateFiles(Path(tls["certificate"]), Path(tls["key"])))
    before = certificates._renewed()
    new = authority.sign("second")
    Path(tls["certificate"]).write_bytes(new.certificate)
    assert certificates._renewed() is before
    Path(tls["key"]).write_bytes(new.key)
    assert certificates._renewed() is not before


def test_a_change_of_the_same_size_and_time_is_seen(tls: dict[str, str], tmp_path: Path) -> None:
    """Files that are swapped in, as clusters do with secrets, may be as old as those before."""
    files = CertificateFiles(Path(tls["certificate"]), Path(tls["key"]))
    before = files.stamps()
    copy = tmp_path / "copy"
    copy.write_bytes(files.key.read_bytes())
    found = files.key.stat()
    os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
    copy.replace(files.key)
    assert files.stamps() != before


@pytest.mark.parametrize("fault", ["missing", "empty", "encrypted"])
async def test_a_server_does_not_start_with_broken_files(
    listen: Listen, tls: dict[str, str], authority: Authority, fault: str
) -> None:
    """It says which section is wrong, and waits for no passphrase."""
    _damage(tls, authority, fault)
    with pytest.raises(ListenError, match=r"server\.tls: .*Name PEM files"):
        await listen(tls=tls)


def _damage(tls: dict[str, str], authority: Authority, fault: str) -> None:
    certificate, key = Path(tls["certificate"]), Path(tls["key"])
    match fault:
        case "torn":
            certificate.write_bytes(certificate.read_bytes()[:200])
        case "missing":
            key.unlink()
        case "of another key":
            key.write_bytes(authority.sign("another").key)
        case "empty":
            certificate.write_bytes(b"")
        case "encrypted":
            key.write_bytes(_encrypted(authority.sign("another")))


def _replace(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def _encrypted(pair: Pair) -> bytes:
    key = serialization.load_pem_private_key(pair.key, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"a passphrase"),
    )
