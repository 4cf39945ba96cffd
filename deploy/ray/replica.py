"""A replica: a server in a process of its own that serves one variant, and what passes calls to it.

Owns the server's life and its file for Prometheus. The server is the one that runs without Ray,
with its own admission, metrics and drain. Knows nothing of other replicas or of routing.
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import yaml
from ray.util import get_node_ip_address

from deploy.ray.passing import Call, Refusal
from deploy.ray.targets import Target
from protos import inference_pb2
from server.comparison.server_process import ServerProcess

_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
_PR_SET_PDEATHSIG = 1
_LARGEST = 64 << 20  # bytes of a message; the server's own bounds are narrower
_READY_S = 3600.0  # an empty store is filled first


class Replica:
    """Made by Ray Serve, once per replica.

    Args:
        content: A config that holds this variant.
        variant: Its name.
        targets: Folder of Prometheus's file_sd; None for no file.
    """

    async def __init__(  # type: ignore[misc] # Ray Serve awaits it
        self, content: dict[str, Any], variant: str, targets: str | None = None
    ) -> None:
        self._variant = variant
        self._folder = tempfile.TemporaryDirectory(prefix="inference-unlimited-")
        folder = Path(self._folder.name)
        if targets is not None:
            # Prometheus may be on another node.
            content["server"]["ops_host"] = get_node_ip_address()
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        self._server = ServerProcess(
            config,
            stderr=folder / "server.log",
            prepare=_end_with_parent,
            folder=None,
        )
        await asyncio.to_thread(self._server.wait_ready, _READY_S)
        self._target: Target | None = None
        if targets is not None:
            self._target = Target(Path(targets), self._server.process.pid)
            address = urlsplit(self._server.metrics_url).netloc
            self._target.announce(address, {"replica_of": variant})
        options = (("grpc.max_receive_message_length", _LARGEST),)
        self._channel = grpc.aio.insecure_channel(self._server.target, options=options)

    async def call(self, call: Call) -> AsyncIterator[bytes | Refusal]:
        """Pass a call; its messages as they come, and a refusal where it does not end well.

        Leaving the iterator ends the call on the server.
        """
        path = f"/{_SERVICE}/{call.method}"
        make = self._channel.unary_stream if call.streams else self._channel.unary_unary
        running = make(path)(call.request, metadata=call.metadata)
        try:
            if call.streams:
                async for message in running:
                    yield message
            else:
                yield await running
        except grpc.aio.AioRpcError as error:
            trailers = tuple((key, value) for key, value in error.trailing_metadata() or ())
            yield Refusal(error.code().name, error.details() or "", trailers)
        finally:
            running.cancel()

    async def check_health(self) -> None:
        """Have Ray Serve replace a replica whose server is gone, or whose engine hangs.

        Raises:
            RuntimeError: With what the log said last.
        """
        status = self._server.process.poll()
        if status is not None:
            said = self._server.log[-2000:]
            raise RuntimeError(f"The server of {self._variant} ended with {status}: {said}")
        alive, _ = await asyncio.to_thread(self._server.get, "/livez")
        if alive != 200:
            raise RuntimeError(f"The engine of {self._variant} does not answer.")

    def __del__(self) -> None:
        with suppress(AttributeError):  # it never came to be
            if self._target is not None:
                self._target.remove()
            self._server.__exit__()
            self._folder.cleanup()


def _end_with_parent() -> None:
    """Ask the kernel to end this process when the replica is killed: nobody else would."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
