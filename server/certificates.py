"""The server's certificate: read from files, and read again when they change.

Both listeners ask for it at each handshake, so a renewed certificate is used from the next
connection on. Files that turn out wrong later are told in the log, once for each state that they
are in, and what was read before stays in use.
Owns the files' contents; knows nothing of what is served.
"""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from server.errors import ListenError

_log = structlog.get_logger(__name__)


Stamps = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where they lie, in PEM.

    Attributes:
        certificate: The chain, the server's own first.
        key: Its private key.
        client_ca: Who must have signed the clients' certificates; None asks clients for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def stamps(self) -> Stamps:
        """Of every file, what changes with its content; None where there is no file."""
        files = [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]
        return tuple(_stamp(file) for file in files)


@dataclass(frozen=True, slots=True)
class _Loaded:
    stamps: Stamps
    context: ssl.SSLContext
    for_grpc: Any


class Certificates:
    """What is in use now. May be asked by several threads.

    Raises:
        ListenError: A file is missing or wrong.
    """

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._refused: Stamps | None = None
        try:
            self._loaded = self._load()
        except (OSError, ValueError, ssl.SSLError) as error:
            raise ListenError(
                f"server.tls: {error}.",
                remedy="Name PEM files that hold the certificate's chain and its key.",
            ) from error

    def for_grpc(self) -> Any:
        """Credentials of a gRPC server."""
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.for_grpc,
            lambda: self._renewed().for_grpc,
            require_client_authentication=self._files.client_ca is not None,
        )

    def for_http(self) -> ssl.SSLContext:
        """A context that takes the certificate in use at each handshake."""
        context = self._loaded.context

        def choose(handshake: Any, name: str | None, _: ssl.SSLContext) -> None:
            del name
            handshake.context = self._renewed().context

        context.sni_callback = choose
        return context

    def _renewed(self) -> _Loaded:
        with self._lock:
            stamps = self._files.stamps()
            if stamps not in (self._loaded.stamps, self._refused):
                self._refused = stamps  # until it is known to be good
                try:
                    self._loaded = self._load()
                    _log.info("certificate renewed", file=self._files.certificate.name)
                except (OSError, ValueError, ssl.SSLError) as error:
                    _log.warning("certificate is not renewed", error=str(error))
            return self._loaded

    def _load(self) -> _Loaded:
        files = self._files
        stamps = files.stamps()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
        roots = None
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            roots = files.client_ca.read_bytes()
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        if files.stamps() != stamps:
            raise ValueError("the files changed while they were read")
        configuration = grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)
        return _Loaded(stamps, context, configuration)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _no_password() -> str:
    # Asked for otherwise at the terminal, for as long as nobody answers.
    raise ValueError("the key is encrypted; store it without a passphrase")
