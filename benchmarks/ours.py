"""Our side: the server over gRPC, and its engine in a process without gRPC.

Owns how they are started and asked. Knows nothing of turns and of reports.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.measure import open_scorer
from artifacts.store import Store
from benchmarks.bandwidth import bytes_per_token
from benchmarks.child import Child, ChildError, Usage
from benchmarks.contenders import Contender, Place, Served
from benchmarks.settings import KV_BYTES, MAX_LENGTH, SLOTS, STEP_TOKENS, write_config


@dataclass(frozen=True, slots=True)
class Weights:
    """Sizes of a variant's weights.

    Attributes:
        loaded_bytes: Of all forms together.
        bytes_per_token: What one decoded token reads of them.
        kv_bytes_per_token: What one token of one sequence takes in the cache.
    """

    loaded_bytes: int
    bytes_per_token: int
    kv_bytes_per_token: int


_LISTENS = "gRPC "  # begins the line in which the server tells its address


class Server(Served):
    """Our server with one variant, started from its command line, asked over gRPC."""

    def __init__(
        self,
        name: str,
        place: Place,
        *,
        chain: list[dict[str, Any]],
        client: Child,
        max_length: int = MAX_LENGTH,
        calibration: Path | None = None,
    ) -> None:
        super().__init__(name, place, client=client)
        self._store = place.folder / "store"
        self._cold_store = place.folder / "cold-stores" / name
        self._is_cold = False

        def config(file: str, store: Path, *, is_measured: bool) -> Path:
            return write_config(
                place.folder / "configs" / file,
                model=place.model,
                store=store,
                variant=name,
                chain=chain,
                threads=place.settings.threads,
                max_length=max_length,
                is_measured=is_measured,
                calibration=calibration,
                evaluation=place.evaluation if is_measured else None,
            )

        self._config = config(f"{name}.yaml", self._store, is_measured=True)
        self._cold_config = config(f"{name}-cold.yaml", self._cold_store, is_measured=False)
        self._target = ""
        self.artifact = ""
        """Digest of what it serves, known once it was asked to describe itself."""

    @property
    def store(self) -> Path:
        """The folder of artifacts, which all variants of a model share."""
        return self._store

    def discard(self) -> None:
        """Have the next start begin with an empty store, without a limit to be measured for.

        What that start makes is gone when it ends: turns begin with what was measured.
        """
        shutil.rmtree(self._cold_store, ignore_errors=True)
        self._is_cold = True

    def end(self) -> Usage | None:
        """End the process, and what a cold start has made."""
        usage = super().end()
        if self._is_cold:
            self._is_cold = False
            shutil.rmtree(self._cold_store, ignore_errors=True)
        return usage

    def describe(self) -> dict[str, Any]:
        """What the server says of its variant: artifact, size, quality."""
        answer = self._client.ask("variants", timeout_s=self._settings.answer_s)
        described: dict[str, Any] = answer["variants"][0]
        self.artifact = described["artifact"]
        return described

    def weights(self) -> Weights:
        """How large its weights are, of the artifact that it last described."""
        stored = Store(self._store).open(self.artifact)
        return Weights(
            loaded_bytes=sum(
                one.size_bytes for one in stored.manifest.files if one.name.endswith(".onnx.data")
            ),
            bytes_per_token=bytes_per_token(stored.path("model.onnx")),
            kv_bytes_per_token=sum(
                layer.heads * (layer.key_dim + layer.value_dim) * np.dtype(layer.dtype).itemsize
                for layer in stored.manifest.graph.layers
            ),
        )

    def scores(self, windows: list[list[int]], into: Path) -> None:
        """Write the logits of texts: of the artifact that it serves, computed here."""
        self.describe()
        stored = Store(self._store).open(self.artifact)
        scorer = open_scorer(stored.path("model.onnx"), stored.manifest.graph, threads=None)
        found = [scorer.logits(np.array(window, np.int64), 0).copy() for window in windows]
        np.save(into, np.stack(found))

    def _spawn(self) -> Child:
        config = self._cold_config if self._is_cold else self._config
        return self._place.child(self.name, [*_command_line(), "serve", str(config)])

    def _load(self) -> None:
        seconds = self._settings.start_s
        line = ""
        while not line.startswith(_LISTENS):
            line = self.child.line(seconds)
        self._target = line.split()[1]
        self._connect()
        try:
            self._client.ask("wait_serving", timeout_s=seconds, limit_s=seconds)
        except ChildError as error:
            raise self.child.failed("does not serve") from error

    def _connect(self) -> None:
        self._client.ask("connect", timeout_s=self._settings.answer_s, target=self._target)


class Engine(Contender):
    """The engine of a server that has been built, in a process without gRPC."""

    def __init__(self, name: str, place: Place, *, server: Server) -> None:
        super().__init__(name, place)
        self._server = server

    @property
    def server(self) -> Server:
        """The server whose artifact it runs."""
        return self._server

    def discard(self) -> None:
        """The artifact is the server's."""

    def generate(self, prompts: list[list[int]], new_tokens: int, **options: Any) -> dict[str, Any]:
        """Compute all prompts at the same time."""
        return self.child.ask(
            "generate",
            timeout_s=self._settings.answer_s,
            prompts=prompts,
            new_tokens=new_tokens,
            limit_s=self._settings.answer_s,
            **options,
        )

    def _spawn(self) -> Child:
        return self._place.worker(self.name, "engine_in_process")

    def _load(self) -> None:
        self.child.ask(
            "load",
            timeout_s=self._settings.start_s,
            store=str(self._server.store),
            artifact=self._server.artifact,
            slots=SLOTS,
            max_length=MAX_LENGTH,
            kv_bytes=KV_BYTES,
            step_tokens=STEP_TOKENS,
            threads=self._settings.threads,
        )


def _command_line() -> list[str]:
    """The installed command, or the same from the source tree."""
    installed = Path(sys.executable).parent / "inference-unlimited"
    if installed.exists():
        return [str(installed)]
    return [sys.executable, "-m", "server.cli"]
