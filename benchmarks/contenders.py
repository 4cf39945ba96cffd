"""What is measured: something that can be started, asked, paused and ended, again and again.

Owns the life of a contender and what all of them share. Knows nothing of any one of them
(``benchmarks.ours``, ``benchmarks.generate_peer``), of turns and of reports.
"""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import Child, ChildError, Usage
from benchmarks.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
_FIRST_TOKEN = 1


@dataclass(frozen=True, slots=True)
class Place:
    """What all contenders share.

    Attributes:
        folder: For configs, stores, exports and logs.
        model: The Hugging Face folder that everybody loads.
        settings: Sizes and limits.
        first_prompt: Asked at a start.
        evaluation: What our rows are measured on when built; None for the model's own text.
    """

    folder: Path
    model: Path
    settings: Settings
    first_prompt: list[int]
    evaluation: Path | None = None

    def child(self, name: str, command: list[str]) -> Child:
        """Start a process in the repository, its log in the folder."""
        log = self.folder / "logs" / f"{name}.log"
        return Child(command, cwd=ROOT, environment=child_environment(), log=log)

    def worker(self, name: str, module: str, python: Path | None = None) -> Child:
        """Start one of ``benchmarks.workers``."""
        interpreter = str(python or sys.executable)
        return self.child(name, [interpreter, "-m", f"benchmarks.workers.{module}"])


class Contender(ABC):
    """One that can be started, asked, paused and ended, again and again.

    Attributes:
        name: In results and tables.
        batches: Whether it serves several prompts at the same time.
        also_batched: Whether it can take several prompts of one length as one batch.
    """

    batches = True
    also_batched = False

    def __init__(self, name: str, place: Place) -> None:
        self.name = name
        self._place = place
        self._settings = place.settings
        self._running: Child | None = None
        self.versions: dict[str, str] = {}
        """Of its libraries, where they are not ours; known once it has started."""

    @property
    def child(self) -> Child:
        """Its process.

        Raises:
            ChildError: It was not started.
        """
        if self._running is None:
            raise ChildError(f"{self.name} is not running.")
        return self._running

    def start(self) -> float:
        """Start the process, load, answer once; seconds from nothing to the first token."""
        self._running = child = self._spawn()
        self._load()
        answer = self.generate([self._place.first_prompt], _FIRST_TOKEN)
        return float(answer.get("first_token_at_s", time.monotonic())) - child.started_s

    def end(self) -> Usage | None:
        """End the process, and say what it has used; None when none ran."""
        if self._running is None:
            return None
        child, self._running = self._running, None
        child.end()
        return child.usage

    def pause(self) -> None:
        """Compute nothing until ``resume``; memory stays."""
        self.child.pause()

    def resume(self) -> None:
        """Have a turn."""
        self.child.resume()

    @abstractmethod
    def discard(self) -> None:
        """Forget what was optimized before, so that the next start is a cold one."""

    def client_cpu_s(self) -> float | None:
        """Processor seconds of its client; None when it has none."""
        return None

    def scores(self, windows: list[list[int]], into: Path) -> None:
        """Write the logits (windows, tokens, vocabulary) of texts as a NumPy file."""
        limit_s = self._settings.answer_s
        self.child.ask("scores", timeout_s=limit_s, windows=windows, into=str(into))

    @abstractmethod
    def _spawn(self) -> Child: ...

    @abstractmethod
    def _load(self) -> None: ...

    @abstractmethod
    def generate(self, prompts: list[list[int]], new_tokens: int, **options: Any) -> dict[str, Any]:
        """Continue prompts; ``seconds``, ``tokens`` and what else this contender tells."""


class Served(Contender):
    """A server that is asked by a client, which is a process of its own and serves others too."""

    def __init__(self, name: str, place: Place, *, client: Child) -> None:
        super().__init__(name, place)
        self._client = client

    def resume(self) -> None:
        """Have a turn, over a connection of its own: the client served others meanwhile."""
        super().resume()
        self._connect()

    def generate(self, prompts: list[list[int]], new_tokens: int, **options: Any) -> dict[str, Any]:
        """Stream all prompts at the same time."""
        return self._client.ask(
            "generate",
            timeout_s=self._settings.answer_s,
            prompts=prompts,
            new_tokens=new_tokens,
            limit_s=self._settings.answer_s,
            **options,
        )

    def client_cpu_s(self) -> float | None:
        """Processor seconds of the client."""
        return self._client.cpu_s()

    @abstractmethod
    def _connect(self) -> None: ...


def child_environment() -> dict[str, str]:
    """Our environment without what would change a server's config, and without the network."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("INFERENCE_UNLIMITED_")
    }
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
