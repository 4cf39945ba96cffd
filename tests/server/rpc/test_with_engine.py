"""The API over the real engine, with a session that computes a hash of the prefix."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.scores import Scores, score
from artifacts.session import Row, temperatures_of
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from server.core import Core
from server.engine.engine import Engine
from server.engine.messages import Attach, EngineObserver, StepKind, VariantLoad
from server.errors import Status
from server.rpc.health import HealthService
from server.rpc.server import create_server

if TYPE_CHECKING:
    from tests.server.conftest import Recorder, Views

pytestmark = pytest.mark.timeout(120)

VOCAB = 4096


class HashSession:
    """A ``DecoderSession`` whose logits depend on every token of the row's prefix."""

    def __init__(self, slots: int = 4, max_length: int = 128) -> None:
        self.slots = slots
        self.max_length = max_length
        self.vocab_size = VOCAB
        self.kv_bytes_per_token = 8
        self.forms = None
        self._cache: list[list[int]] = [[] for _ in range(slots)]

    def step(self, rows: Sequence[Row]) -> Scores:
        logits = [np.zeros((0, VOCAB), np.float32)]
        for row in rows:
            cache = self._cache[row.slot]
            del cache[row.start :]
            cache.extend(row.tokens.tolist())
            if row.logits:
                logits.append(_logits(cache)[None])
        return score(np.concatenate(logits), temperatures_of(rows))

    def copy(self, source: int, target: int, length: int) -> None:
        self._cache[target] = self._cache[source][:length]

    def release(self, slot: int, keep: int = 0) -> None:
        del self._cache[slot][keep:]

    def terminate(self) -> None:
        """Steps of this session do not hang."""


def _logits(prefix: list[int]) -> NDArray[np.float32]:
    digest = hashlib.blake2b(np.asarray(prefix, np.int64).tobytes(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    logits = (rng.standard_normal(VOCAB) * 3).astype(np.float32)
    logits[:6] = -50  # special tokens would end the text
    return logits


class Loads(EngineObserver):
    """Keeps the last gauges of each variant."""

    def __init__(self) -> None:
        self.last: dict[str, VariantLoad] = {}

    def stepped(self, variant: str, kind: StepKind, seconds: float, load: VariantLoad) -> None:
        del kind, seconds
        self.last[variant] = load

    def loaded(self, variant: str, load: VariantLoad) -> None:
        self.last[variant] = load


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
async def served(
    catalog: Views, recorder: Recorder, loads: Loads
) -> AsyncIterator[tuple[Core, Any]]:
    """A core over a real engine, and a client of it."""
    executor = ThreadPoolExecutor(1)
    engine = Engine(lambda events: core.deliver(events), loads)  # noqa: PLW0108 - core is next
    core = Core(
        catalog, engine.post, executor=executor, grammar_executor=executor, observer=recorder
    )
    for name in ("baseline", "int8"):
        engine.post(Attach(name, HashSession(), HashSession, 512, step_tokens=64))
    engine.start()
    server, port = create_server(core, HealthService(), host="127.0.0.1", port=0)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield core, pb_grpc.InferenceStub(channel)
    await server.stop(0)
    assert engine.stop()
    executor.shutdown()


def asked(text: str, **sampling: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=text, sampling=pb.SamplingParameters(**sampling))


async def idle(core: Core, loads: Loads) -> None:
    """Wait until core and engine hold nothing."""
    async with asyncio.timeout(20):
        while core.unfinished or any(  # noqa: ASYNC110 - the engine sets no asyncio.Event
            load.running_requests or load.waiting_requests or load.reserved_tokens
            for load in loads.last.values()
        ):
            await asyncio.sleep(0.005)


async def test_the_same_seed_gives_the_same_text_alone_and_in_a_crowd(
    served: tuple[Core, Any],
) -> None:
    """Neighbours change nothing, and a drawn seed can be used again."""
    _, stub = served
    first = await stub.Complete(asked("def", max_tokens=30))
    again = asked("def", max_tokens=30, seed=first.finish.seed)
    crowd = [stub.Complete(asked(f"other {n}", max_tokens=20 + n)) for n in range(3)]
    second, *_ = await asyncio.gather(stub.Complete(again), *crowd)
    assert first.token_ids == second.token_ids
    other = await stub.Complete(asked("def", max_tokens=30, seed=first.finish.seed + 1))
    assert first.token_ids != other.token_ids


async def test_a_stop_string_of_the_real_text_ends_it(served: tuple[Core, Any]) -> None:
    """A piece of what greedy decoding says, used as stop, cuts the same text there."""
    _, stub = served
    whole = await stub.Complete(asked("x", max_tokens=40, temperature=0))
    stop = whole.text[10:15]
    cut = await stub.Complete(asked("x", max_tokens=40, temperature=0, stop=[stop]))
    assert whole.text[: whole.text.index(stop)] == cut.text
    assert stop == cut.finish.stop_string
    count = len(cut.token_ids)
    assert (whole.token_ids[:count], count) == (
        cut.token_ids,
        cut.finish.usage.completion_tokens,
    )


async def test_usage_and_timings_are_the_engines(
    served: tuple[Core, Any], recorder: Recorder
) -> None:
    """A prompt that was seen before is reused, and the parts of the time add up."""
    _, stub = served
    prompt = "the same long prompt " + "again and " * 20
    for _ in range(2):
        answer = await stub.Complete(asked(prompt, max_tokens=8))
    assert answer.finish.usage.completion_tokens == 8
    assert answer.finish.usage.cached_tokens > 0
    timings = answer.finish.timings
    record = recorder.records[-1]
    parts = timings.queue_seconds + timings.prefill_seconds + timings.decode_seconds
    assert 0 < parts <= record.duration_s
    assert Status.OK is record.status


async def test_a_cancel_storm_leaves_engine_and_core_empty(
    served: tuple[Core, Any], loads: Loads, recorder: Recorder
) -> None:
    """Calls of all lengths on both variants, most cancelled somewhere: all is free at the end."""
    core, stub = served
    rng = random.Random(5)  # noqa: S311 - a script, no secret

    async def one(number: int) -> None:
        request = asked(f"prompt {number} " * rng.randint(1, 6), max_tokens=rng.randint(1, 60))
        request.variant = rng.choice(["baseline", "int8"])
        call = stub.Generate(request, timeout=rng.choice([None, None, 0.02]))
        leaves_after = rng.choice([0, 1, 3, None])
        try:
            seen = 0
            async for _ in call:
                seen += 1
                if seen == leaves_after:
                    call.cancel()
            if leaves_after == 0:
                call.cancel()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            return

    for start in range(0, 96, 12):
        await asyncio.gather(*(one(start + number) for number in range(12)))
    await idle(core, loads)
    for name in ("baseline", "int8"):
        assert core._intake._admission.unfinished(name) == 0
        answer = await stub.Complete(
            pb.GenerateRequest(variant=name, text="after", sampling={"max_tokens": 5})
        )
        assert answer.finish.usage.completion_tokens == 5
    statuses = {record.status for record in recorder.records}
    assert {Status.OK, Status.CANCELLED} <= statuses
    assert Status.INTERNAL not in statuses
