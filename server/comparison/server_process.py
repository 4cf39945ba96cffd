"""A real server in a process of its own, for comparisons and end-to-end tests.

Owns starting ``inference-unlimited serve``, reading where it listens, waiting for its health, and
leaving no process behind. Knows nothing of what is asked of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from server.errors import ServerError

if TYPE_CHECKING:
    import psutil

ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.02
_STOP_S = 60.0

_LAST_LINES = 12  # of a log, in an error

_Seen = TypeVar("_Seen")


class ServerProcessError(ServerError):
    """A server that was started to be measured did not come up, or ended; its log says why."""

    code = "server_process"


class ServerProcess:
    """One running server; leave the ``with`` block and it is gone, with all its children."""

    def __init__(
        self,
        config: Path | None,
        *arguments: str,
        stderr: Path,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
        program: Sequence[str] = ("-m", "server.cli"),
        folder: Path | None = ROOT,
    ) -> None:
        """Start it on free ports.

        Args:
            config: YAML file, None for the embedded demo.
            arguments: Further arguments of ``serve``.
            stderr: Where its log goes.
            environment: Variables on top of this process's own, without its configuration.
            prepare: Called in the new process before it becomes the server.
            program: What the interpreter runs; a test may run the server with a fault planted.
            folder: Its working directory; None for this process's own.
        """
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("INFERENCE_UNLIMITED_")
        }
        command = [sys.executable, *program, "serve"]
        command += [] if config is None else [str(config)]
        command += ["--grpc-port", "0", "--http-port", "0", "--ops-port", "0", *arguments]
        self.stderr = stderr
        self.lines: list[str] = []
        self._said = threading.Condition()
        with stderr.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**inherited, "PYTHONUNBUFFERED": "1", **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C in a terminal is the caller's to answer
                preexec_fn=prepare,  # noqa: PLW1509 - tests limit resources with it
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        family = [self.process.pid, *(child.pid for child in self.children())]
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        for pid in family[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def target(self) -> str:
        """Where gRPC listens, ``host:port``."""
        return self.wait_line(r"^gRPC +(\S+)$")

    @property
    def http_url(self) -> str:
        """Where the HTTP API begins, ``http://host:port/v1``."""
        return self.wait_line(r"^HTTP +(\S+)$")

    @property
    def metrics_url(self) -> str:
        """The address that Prometheus scrapes."""
        return self.wait_line(r"^metrics +(\S+)$")

    @property
    def log(self) -> str:
        """What it wrote to standard error so far."""
        return self.stderr.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """Its optimizer children."""
        import psutil

        try:
            found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return found

    def wait_line(self, pattern: str, timeout_s: float = 60) -> str:
        """Wait until it prints a line that matches, and give the first group.

        Raises:
            ServerProcessError: It ended, or printed none in time.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._said:
            while True:
                for line in self.lines:
                    if match := re.search(pattern, line):
                        return match.group(1)
                ended = not self._reader.is_alive()
                if ended or not self._said.wait(deadline_s - time.monotonic()):
                    raise self.failed("did not say where it listens")

    def get(self, path: str) -> tuple[int, str]:
        """Ask the operators' listener; give status and body."""
        url = self.metrics_url.removesuffix("/metrics") + path
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own server
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def wait_ready(self, timeout_s: float = 300) -> dict[str, Any]:
        """Wait until every variant is ready or has failed; give what /readyz says."""
        return self.wait_for(self._settled, timeout_s)

    def wait_for(self, look: Callable[[], _Seen | None], timeout_s: float = 60) -> _Seen:
        """Look until there is something to be seen.

        Raises:
            ServerProcessError: It ended, or there was nothing to be seen in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while (seen := look()) is None:
            if time.monotonic() > deadline_s or self.process.poll() is not None:
                raise self.failed("did not become ready")
            time.sleep(_POLL_S)
        return seen

    def stop(self, *signals: signal.Signals, timeout_s: float = _STOP_S) -> int:
        """Send signals (SIGTERM by default) and give the exit code."""
        for number in signals or (signal.SIGTERM,):
            self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def failed(self, how: str) -> ServerProcessError:
        """The error that tells what went wrong, with the end of the log."""
        status = self.process.poll()
        ended = "" if status is None else f" It ended with status {status}."
        lines = [*self.lines, *self.log.splitlines()][-_LAST_LINES:]
        last = chr(10).join(lines)
        return ServerProcessError(f"The server {how}.{ended} Its last words:\n{last}")

    def _settled(self) -> dict[str, Any] | None:
        try:
            status, body = self.get("/readyz")
        except urllib.error.URLError:  # it is about to end; that is told when it has
            return None
        return json.loads(body) if status == 200 else None

    def _read(self) -> None:
        if self.process.stdout is None:
            return
        for line in self.process.stdout:
            with self._said:
                self.lines.append(line.rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self._said.notify_all()
