"""The server's engine without the server: the same artifact and settings, driven by messages.

Owns an engine, a variant and a clock around ONNX Runtime's run, so that the engine's own work per
step can be told apart. Knows nothing of gRPC and of text.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from artifacts.runtime import share_threads
from artifacts.store import Store
from benchmarks.workers.protocol import answer_requests
from server.engine.engine import Engine
from server.engine.messages import (
    Attach,
    EngineObserver,
    Event,
    Failed,
    Finished,
    Generated,
    Sampling,
    StepKind,
    Submit,
    VariantLoad,
)
from server.loading import LoadSettings, load

_VARIANT = "measured"


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what kind, how many rows, and when ONNX Runtime's run began and ended."""

    kind: StepKind
    rows: int
    begun_s: float
    ended_s: float


class StepClock(EngineObserver):
    """Notes every step; makes ONNX Runtime tell when it runs."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._run = (0.0, 0.0)
        run = ort.InferenceSession.run_with_iobinding

        def timed(session: Any, *arguments: Any) -> None:
            begun_s = time.monotonic()
            run(session, *arguments)
            self._run = (begun_s, time.monotonic())

        ort.InferenceSession.run_with_iobinding = timed

    def stepped(self, variant: str, kind: StepKind, seconds: float, load: VariantLoad) -> None:
        """See ``EngineObserver``; one run belongs to each step."""
        del variant, seconds
        # Appending is atomic; the reader may miss the last step, which ends no pair it needs.
        self._steps.append(Step(kind, load.batch_rows, *self._run))

    def own_s(self, rows: int, since_s: float) -> list[float]:
        """Seconds between the runs of adjacent steps that decode ``rows`` rows each."""
        steps = [step for step in self._steps if step.begun_s >= since_s]
        return [
            following.begun_s - step.ended_s
            for step, following in itertools.pairwise(steps)
            if (step.kind, step.rows) == (following.kind, following.rows) == (StepKind.DECODE, rows)
        ]


class EngineInProcess:
    """One variant in an engine of this process."""

    def __init__(self) -> None:
        self._clock = StepClock()
        self._events: queue.SimpleQueue[tuple[float, Sequence[Event]]] = queue.SimpleQueue()
        self._engine = Engine(
            lambda events: self._events.put((time.monotonic(), events)), self._clock
        )
        self._names = itertools.count()

    def load(
        self,
        store: str,
        artifact: str,
        *,
        slots: int,
        max_length: int,
        kv_bytes: int,
        step_tokens: int,
        threads: int,
    ) -> dict[str, Any]:
        """Serve an artifact of a store just as the server would."""
        settings = LoadSettings(
            slots=slots,
            max_length=max_length,
            kv_bytes=kv_bytes,
            memory_bytes=0,  # kv_bytes says it
            max_waiting=0,  # nobody but this process asks
            threads=share_threads(threads),
        )
        loaded = load(Store(Path(store)).open(artifact), settings)
        self._engine.start()
        self._engine.post(
            Attach(
                _VARIANT,
                loaded.session,
                loaded.rebuild,
                loaded.limits.kv_budget_tokens,
                step_tokens,
            )
        )
        return {}

    def generate(
        self,
        prompts: list[list[int]],
        new_tokens: int,
        *,
        limit_s: float,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> dict[str, Any]:
        """Continue all prompts at the same time.

        Returns:
            ``seconds`` from the first request to the last event, ``tokens`` and ``first_token_s``
            of each, and ``own_s``: seconds between the runs of adjacent full decoding steps.
        """
        sampling = Sampling(
            max_tokens=new_tokens, temperature=temperature, top_p=top_p, ignore_eos=True
        )
        begun_s = time.monotonic()
        names = [f"r{next(self._names)}" for _ in prompts]
        for name, prompt in zip(names, prompts, strict=True):
            self._engine.post(Submit(name, _VARIANT, tuple(prompt), sampling, begun_s))
        tokens: dict[str, list[int]] = {name: [] for name in names}
        firsts: dict[str, float] = {}
        running = len(names)
        ended_s = begun_s
        while running:
            ended_s, events = self._events.get(timeout=limit_s)
            for event in events:
                running -= not isinstance(event, Generated)
                _take(event, ended_s, tokens, firsts)
        return {
            "seconds": ended_s - begun_s,
            "tokens": [tokens[name] for name in names],
            "first_token_s": [firsts[name] - begun_s for name in names],
            "own_s": self._clock.own_s(len(prompts), begun_s),
        }

    def stop(self) -> None:
        """End the engine's thread."""
        self._engine.stop()


def _take(
    event: Event, at_s: float, tokens: dict[str, list[int]], firsts: dict[str, float]
) -> None:
    match event:
        case Generated():
            firsts.setdefault(event.request_id, at_s)
            tokens[event.request_id].extend(token.token_id for token in event.tokens)
        case Failed():
            raise RuntimeError(event.message)
        case Finished():
            if event.usage.cached_tokens:
                raise RuntimeError("A prompt was answered from the cache of an earlier one.")


if __name__ == "__main__":
    engine = EngineInProcess()
    answer_requests({"load": engine.load, "generate": engine.generate})
    engine.stop()
