"""The other side: libraries whose ``generate`` is called in a worker process.

Owns how they are loaded and asked. Knows nothing of turns and of reports.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.child import Child
from benchmarks.contenders import Contender, Place


class Peer(Contender):
    """Another library, called in a process of its own.

    Args:
        worker: Module of ``benchmarks.workers``.
        python: Interpreter of its environment; None for ours.
        exported: Where it keeps what it made of the model, if it makes anything.
        load: What else it is told when it loads.
        also_batched: Measure it once more with all prompts as one batch, for information.
    """

    batches = False

    def __init__(
        self,
        name: str,
        place: Place,
        *,
        worker: str,
        python: Path | None = None,
        exported: Path | None = None,
        load: dict[str, Any] | None = None,
        also_batched: bool = False,
    ) -> None:
        super().__init__(name, place)
        self.also_batched = also_batched
        self._worker = worker
        self._python = python
        self._exported = exported
        self._told = load or {}

    def discard(self) -> None:
        """Delete the export."""
        if self._exported is not None:
            shutil.rmtree(self._exported, ignore_errors=True)

    def generate(self, prompts: list[list[int]], new_tokens: int, **options: Any) -> dict[str, Any]:
        """As its worker does; one after another, or as one batch with ``batched``, by most."""
        return self.child.ask(
            "generate",
            timeout_s=self._settings.answer_s,
            prompts=prompts,
            new_tokens=new_tokens,
            **options,
        )

    def _spawn(self) -> Child:
        return self._place.worker(self.name, self._worker, self._python)

    def _load(self) -> None:
        arguments = {} if self._exported is None else {"exported": str(self._exported)}
        answer = self.child.ask(
            "load",
            timeout_s=self._settings.start_s,
            model=str(self._place.model),
            threads=self._settings.threads,
            **arguments,
            **self._told,
        )
        self.versions = answer["versions"]
