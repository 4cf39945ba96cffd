"""The API side's test bench: a scripted engine behind the real seam, and variants to ask."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.host_figures import Figure, Host, HostFigures
from artifacts.manifest import (
    ExportRecord,
    FileEntry,
    Forms,
    GenerationDefaults,
    GraphSpec,
    KernelFinding,
    Manifest,
    ModelSource,
    Quality,
    StageRecord,
)
from artifacts.tokenizer import Tokenizer
from server.catalog import VariantLimits, VariantState, VariantView
from server.chat_template import load_template
from server.core import Core
from server.engine.messages import (
    Cancel,
    Command,
    Deliver,
    Event,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Generated,
    Recorded,
    Scored,
    Submit,
    Timings,
    Token,
    TokenLogprob,
    Usage,
)
from server.limits import RequestLimits
from server.observer import RequestObserver, RequestRecord
from server.shadow_scores import Shadowed
from server.traffic import Shadow

DEMO = Path(__file__).parents[2] / "demo" / "model"
DEMO_TOKENIZER = DEMO / "tokenizer.json"

Script = Callable[[Submit], Sequence[Sequence[int]]]


@dataclass
class Running:
    """A request in the scripted engine."""

    submit: Submit
    steps: list[Sequence[int]]
    sent: int = 0


class ScriptedEngine:
    """Answers the engine's commands from a script, on a thread, one step of all rows at a time.

    Keeps the engine's promises (slots, max_tokens, stop tokens, deadlines, one final event) and
    is otherwise deterministic. ``failures`` holds request numbers that end with an error instead
    of their second step. Without ``gate`` it runs freely; with it, one release is one step.
    """

    def __init__(self, deliver: Deliver, slots: int = 4) -> None:
        self._deliver = deliver
        self._slots = slots
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="scripted-engine", daemon=True)
        self.script: Script = lambda submit: [[token] for token in submit.prompt]
        self.failures: dict[str, FailureCode] = {}
        self.gate: threading.Semaphore | None = None
        self.waiting: list[Running] = []
        self.running: list[Running] = []
        self.stalls: Callable[[Submit], bool] = lambda _: False
        self.stalled: list[Running] = []  # never go on; hold no slot
        self.submits: list[Submit] = []
        self.cancels: list[Cancel] = []
        self.steps = 0
        self.candidate_logprob = math.log(0.5)  # of each token that a shadow asks about

    def start(self) -> None:
        self._thread.start()

    def post(self, command: Command) -> None:
        self._inbox.put(command)

    def stop(self) -> None:
        self._inbox.put(None)
        if self.gate is not None:
            self.gate.release()
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            idle = not (self.running or self.waiting)
            if not self._receive(block=idle):
                return
            while self.waiting and len(self.running) < self._slots:
                self.running.append(self.waiting.pop(0))
            # Commands are heard while a step is held, as between two real steps.
            held = self.gate is not None and self.running
            if held and self.gate is not None and not self.gate.acquire(timeout=0.002):
                self._expire()
                continue
            self._step()

    def _receive(self, *, block: bool) -> bool:
        try:
            command = self._inbox.get(block=block)
            while True:
                if command is None:
                    return False
                self._handle(command)
                command = self._inbox.get_nowait()
        except queue.Empty:
            return True

    def _handle(self, command: Command) -> None:
        if isinstance(command, Submit):
            self.submits.append(command)
            place = self.stalled if self.stalls(command) else self.waiting
            place.append(Running(command, list(self.script(command))))
        elif isinstance(command, Cancel):
            self.cancels.append(command)
            for request in [*self.running, *self.waiting, *self.stalled]:
                if request.submit.request_id == command.request_id:
                    self._deliver([self._finished(request, command.finish)])

    def _expire(self) -> None:
        events = [
            self._failed(request, FailureCode.DEADLINE_EXCEEDED)
            for request in [*self.running, *self.waiting]
            if request.submit.deadline_s is not None
            and time.monotonic() >= request.submit.deadline_s
        ]
        events += [
            self._failed(request, FailureCode.RESOURCE_EXHAUSTED)
            for request in list(self.waiting)
            if request.submit.queue_until_s is not None
            and time.monotonic() >= request.submit.queue_until_s
        ]
        if events:
            self._deliver(events)

    def _step(self) -> None:
        self._expire()
        events: list[Event] = []
        for request in list(self.running):
            events.extend(self._advance(request))
        if events:
            self.steps += 1
            self._deliver(events)

    def _advance(self, request: Running) -> Iterator[Event]:
        submit = request.submit
        failure = self.failures.get(submit.request_id)
        if failure is not None and request.sent:
            yield self._failed(request, failure)
            return
        ids = list(request.steps.pop(0)) if request.steps else []
        ends = submit.sampling.stop_token_ids | (
            frozenset() if submit.sampling.ignore_eos else submit.sampling.eos_token_ids
        )
        room = submit.sampling.max_tokens - request.sent
        ids = ids[:room]
        stop = next((index for index, token in enumerate(ids) if token in ends), None)
        if stop is not None:
            ids = ids[: stop + 1]
        if submit.scoring is not None and not request.sent:
            scored = submit.prompt[submit.scoring.first :]
            tokens = tuple(
                Token(token, -0.25, tuple(TokenLogprob(token, -0.25 - rank) for rank in range(top)))
                for token in scored
                for top in (submit.scoring.top,)
            )
            wanted = submit.scoring.among
            among = (
                None
                if wanted is None
                else np.full(wanted.shape, self.candidate_logprob, np.float32)
            )
            yield Scored(submit.request_id, tokens, among)
        request.sent += len(ids)
        if ids:
            yield Generated(
                submit.request_id,
                tuple(_token(submit, token) for token in ids),
                time.monotonic(),
            )
        if stop is not None:
            yield self._finished(request, FinishReason.STOP, ids[-1])
        elif not request.steps or request.sent >= submit.sampling.max_tokens:
            yield self._finished(request, FinishReason.LENGTH)

    def _finished(
        self, request: Running, reason: FinishReason, stop_token_id: int | None = None
    ) -> Finished:
        return Finished(request.submit.request_id, reason, *self._leave(request), stop_token_id)

    def _failed(self, request: Running, code: FailureCode) -> Failed:
        return Failed(
            request.submit.request_id, code, "a secret of the engine", *self._leave(request)
        )

    def _leave(self, request: Running) -> tuple[Usage, Timings]:
        for place in (self.running, self.waiting, self.stalled):
            if request in place:
                place.remove(request)
        usage = Usage(len(request.submit.prompt), request.sent, 1)
        return usage, Timings(0.25, 0.5, 0.75)


def _token(submit: Submit, token_id: int) -> Token:
    count = submit.sampling.logprobs
    recorded = None
    if submit.recorded:  # half of the mass on the token itself, half on the next one
        logprobs = np.full(2, np.log(0.5), np.float32)
        recorded = Recorded(-0.5, np.array([token_id, token_id + 1]), logprobs)
    if count is None:
        return Token(token_id, recorded=recorded)
    top = tuple(TokenLogprob(token_id + rank, -0.5 - rank) for rank in range(count))
    return Token(token_id, -0.5, top, recorded)


@dataclass
class Recorder(RequestObserver):
    """Keeps what telemetry is told."""

    records: list[RequestRecord] = field(default_factory=list)
    first: list[tuple[str, float]] = field(default_factory=list)
    gaps: list[tuple[str, float, int]] = field(default_factory=list)
    judged: list[Shadowed] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def shadowed(self, one: Shadowed) -> None:
        self.judged.append(one)

    def shadow_dropped(self, candidate: str) -> None:
        self.dropped.append(candidate)

    def first_token(self, variant: str, seconds: float) -> None:
        self.first.append((variant, seconds))

    def next_tokens(self, variant: str, seconds_per_token: float, count: int) -> None:
        self.gaps.append((variant, seconds_per_token, count))

    def finished(self, record: RequestRecord) -> None:
        self.records.append(record)


@dataclass
class Views:
    """A catalog of fixed views."""

    views: dict[str, VariantView]
    traffic: Mapping[str, float] = field(default_factory=dict)
    shadow: Shadow | None = None

    @property
    def default(self) -> str:
        return next(iter(self.views))

    def names(self) -> tuple[str, ...]:
        return tuple(self.views)

    def get(self, name: str) -> VariantView | None:
        return self.views.get(name)

    def change(self, name: str, **changes: Any) -> None:
        self.views[name] = replace(self.views[name], **changes)


@dataclass
class Bench:
    """Core, scripted engine and what they were told, on the running loop."""

    core: Core
    engine: ScriptedEngine
    catalog: Views
    recorder: Recorder
    log: list[dict[str, Any]]

    async def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Wait for something that another thread or task brings about."""
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what other threads do sets no asyncio.Event
                await asyncio.sleep(0.002)


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Tokenizer:
    """The demo model's byte-level BPE."""
    return Tokenizer.load(DEMO_TOKENIZER)


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """A manifest with every part filled."""
    quality = Quality(
        kl_mean=0.01,
        kl_p99=0.2,
        top1_agreement=0.98,
        perplexity=12.5,
        documents=8,
        positions=4096,
        isa="avx512_vnni",
    )
    return Manifest(
        recipe="a" * 64,
        model=ModelSource(id="demo", revision="r1", architecture="LlamaForCausalLM"),
        chain=({"quantize": {"bits": 8}},),
        graph=GraphSpec(
            form="packed",
            vocab_size=4096,
            max_length=128,
            layers=(),
            inputs=("input_ids",),
            forms=Forms(choice="by_role", prompts="c" * 64),
        ),
        generation=GenerationDefaults(eos_token_ids=(0, 5), bos_token_id=0),
        files=(FileEntry(name="model.onnx", size_bytes=1000, sha256="b" * 64),),
        export=ExportRecord(
            exporter="mobius", max_logit_error=1e-6, logit_scale=10.0, tokens_compared=64
        ),
        lineage=(
            StageRecord(stage="export", form="onnx", seconds=1.5, size_bytes=4000),
            StageRecord(
                stage="quantize",
                method="weight_only",
                params={"bits": 8},
                form="onnx",
                seconds=2.5,
                size_bytes=1000,
                parameters=500,
                zeros=0,
                quality=quality,
                notes=("lm_head kept",),
            ),
        ),
        libraries={"onnxruntime": "1.32.0"},
        created="2026-01-01T00:00:00Z",
        audit=tuple(
            KernelFinding(node=name, operator="MatMul", rule="float_product", reason="4.2 MB")
            for name in ("first", "second")
        ),
    )


@pytest.fixture
def host_figures() -> HostFigures:
    """What was measured of an artifact on some machine."""
    return HostFigures(
        host=Host(processor="Example 9000", isa="x86_64-avx2", cores=2, onnxruntime="1.32.0"),
        measured="2026-11-24T12:00:00Z",
        rounds=5,
        disturbed_rounds=1,
        speeds={
            "decode_1_tokens_per_second": Figure(value=96.5, low=81.0, high=114.8),
            "inter_token_p50_seconds": Figure(value=0.01),
        },
        quality={"kl_mean": Figure(value=0.01, low=0.008, high=0.012)},
    )


@pytest.fixture
def catalog(
    manifest: Manifest, byte_level_tokenizer: Tokenizer, host_figures: HostFigures
) -> Views:
    """Two ready variants, one that builds and one that failed."""
    limits = VariantLimits(max_length=128, slots=4, kv_budget_tokens=512, max_waiting=2)
    ready = VariantView(
        "baseline",
        VariantState.READY,
        recipe=manifest.recipe,
        artifact=manifest.digest,
        manifest=manifest,
        tokenizer=byte_level_tokenizer,
        limits=limits,
        figures=host_figures,
        template=load_template(DEMO / "chat_template.jinja", DEMO / "tokenizer_config.json"),
    )
    int8 = replace(ready, name="int8", chain=({"quantize": {"bits": 8}},))
    return Views(
        {
            "baseline": ready,
            "int8": int8,
            "slow": VariantView("slow", VariantState.BUILDING),
            "broken": VariantView("broken", VariantState.FAILED, error="the disk is full"),
        }
    )


class _Log:
    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._entries = entries

    def error(self, event: str, **values: Any) -> None:
        self._entries.append({"event": event, **values})


@pytest.fixture
def recorder() -> Recorder:
    """What telemetry is told."""
    return Recorder()


@pytest.fixture
async def bench(catalog: Views, recorder: Recorder) -> AsyncIterator[Bench]:
    """A core over the scripted engine."""
    entries: list[dict[str, Any]] = []
    executor = ThreadPoolExecutor(1)
    engine = ScriptedEngine(lambda events: core.deliver(events))  # noqa: PLW0108 - core is next
    core = Core(
        catalog,
        engine.post,
        executor=executor,
        grammar_executor=executor,
        observer=recorder,
        limits=RequestLimits(),
        draw_seed=lambda: 77,
        draw=lambda: 0.5,
        new_log_id=lambda: "log-1",
        log=_Log(entries),
    )
    engine.start()
    yield Bench(core, engine, catalog, recorder, entries)
    engine.stop()
    executor.shutdown()
