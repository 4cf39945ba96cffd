"""Real listeners over the scripted engine, and an authority that signs certificates for them."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client import CollectorRegistry

from server.comparer import Comparer
from server.config.fields import ServerSection
from server.errors import PreconditionError
from server.listeners import Listeners
from server.ops import routes
from server.rpc.admin import AdminService
from server.rpc.health import HealthService

if TYPE_CHECKING:
    from tests.server.conftest import Bench

_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """As files; ones that are there are replaced."""
        files = folder / f"{name}.pem", folder / f"{name}.key"
        for file, content in zip(files, (self.certificate, self.key), strict=True):
            new = file.with_suffix(".new")
            new.write_bytes(content)
            new.replace(file)
        return files


class Authority:
    """Signs what it is asked to."""

    def __init__(self, name: str) -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        basic = x509.BasicConstraints(ca=True, path_length=None)
        self._own = (
            self._builder(self._name, self._key)
            .add_extension(basic, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = self._own.public_bytes(serialization.Encoding.PEM)

    def sign(self, name: str) -> Pair:
        """A certificate for this machine under some name."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [
            x509.DNSName("localhost"),
            x509.DNSName(name),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signed = (
            self._builder(subject, key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return Pair(signed.public_bytes(serialization.Encoding.PEM), private)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
        )


@pytest.fixture(scope="session")
def authority() -> Authority:
    """Whom servers and clients trust."""
    return Authority("an authority")


@pytest.fixture(scope="session")
def stranger() -> Authority:
    """Whom nobody trusts."""
    return Authority("another authority")


class NoOperations:
    """What may be changed while this server runs: nothing."""

    async def load(self, *_: Any) -> AsyncIterator[Any]:
        raise PreconditionError("nothing changes here.")
        yield

    async def unload(self, *_: Any) -> None:
        raise PreconditionError("nothing changes here.")

    def set_traffic(self, *_: Any) -> None:
        raise PreconditionError("nothing changes here.")

    promote = roll_back = set_traffic


class NoHealth:
    """An operator's view of a server that is well."""

    def alive(self) -> bool:
        return True

    serving = settled = alive

    def draining(self) -> bool:
        return False

    def views(self) -> tuple[Any, ...]:
        return ()


Listen = Callable[..., Awaitable[Listeners]]


@pytest.fixture
async def listen(bench: Bench) -> AsyncIterator[Listen]:
    """Start listeners as a config describes them; ports are free ones."""
    started: list[tuple[Listeners, HealthService]] = []

    async def start(**server: Any) -> Listeners:
        health = HealthService()
        admin = AdminService(
            bench.core,
            NoOperations(),  # type: ignore[arg-type]
            Comparer(lambda _: None),
        )
        ports = {"grpc_port": 0, "http_port": 0, "ops_port": 0}
        section = ServerSection.model_validate({**ports, **server})
        operators = routes(CollectorRegistry(), NoHealth())
        listeners = Listeners(bench.core, health, operators, admin, section)
        started.append((listeners, health))
        await listeners.start()
        return listeners

    yield start
    for listeners, health in started:
        health.close()
        await listeners.close_public()
        await listeners.close()


def trusting(authority: Authority, own: Pair | None = None) -> ssl.SSLContext:
    """A client's context for HTTP."""
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    if own is not None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            context.load_cert_chain(*own.write(Path(folder), "client"))
    return context


def credentials(authority: Authority, own: Pair | None = None) -> grpc.ChannelCredentials:
    """A client's credentials for gRPC."""
    if own is None:
        return grpc.ssl_channel_credentials(authority.certificate)
    return grpc.ssl_channel_credentials(authority.certificate, own.key, own.certificate)
