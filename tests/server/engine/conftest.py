"""A session without a model, whose logits betray any mistake in the cache."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.errors import SessionError, StepTerminatedError
from artifacts.scores import Scores, score
from artifacts.session import DecoderSession, Row, temperatures_of
from server.engine.engine import Engine
from server.engine.messages import (
    Attach,
    Drafting,
    Event,
    Failed,
    Finished,
    Generated,
    Sampling,
    Scored,
    Submit,
)

VOCAB = 64


def prefix_logits(tokens: Sequence[int], vocab: int = VOCAB) -> NDArray[np.float32]:
    """(vocab,) logits that are a hash of the whole prefix: the slow oracle of every fast path."""
    digest = hashlib.blake2b(np.asarray(tokens, np.int64).tobytes(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    return (rng.standard_normal(vocab) * 3).astype(np.float32)


class PrefixSession:
    """Implements ``DecoderSession``: the cache of a slot is the list of its tokens."""

    def __init__(self, slots: int = 4, max_length: int = 256) -> None:
        self.slots = slots
        self.max_length = max_length
        self.vocab_size = VOCAB
        self.kv_bytes_per_token = 8
        self.forms = None
        self.cache: list[list[int]] = [[] for _ in range(slots)]
        self.steps: list[list[Row]] = []
        self.fail_next = False
        self.gate = threading.Event()
        self.gate.set()
        self.terminated = threading.Event()

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return prefix_logits(tokens)

    def step(self, rows: Sequence[Row]) -> Scores:
        self.steps.append(list(rows))
        self.gate.wait(10)
        if self.terminated.is_set():
            raise StepTerminatedError("terminated")
        if self.fail_next:
            self.fail_next = False
            raise SessionError("planted")
        assert len({row.slot for row in rows}) == len(rows)
        wanted = []
        for row in rows:
            cache = self.cache[row.slot]
            assert row.start <= len(cache), "tokens are missing from the cache"
            del cache[row.start :]
            for index, token in enumerate(row.tokens.tolist()):
                cache.append(token)
                if index >= len(row.tokens) - row.logits:
                    wanted.append(self.logits(cache))
            assert len(cache) <= self.max_length
        logits = np.array(wanted, np.float32).reshape(len(wanted), VOCAB)
        return score(logits, temperatures_of(rows))

    def copy(self, source: int, target: int, length: int) -> None:
        assert len(self.cache[source]) >= length
        self.cache[target] = self.cache[source][:length]

    def release(self, slot: int, keep: int = 0) -> None:
        del self.cache[slot][keep:]

    def terminate(self) -> None:
        self.terminated.set()
        self.gate.set()


class Harness:
    """A running engine, its events by request, and a way to wait for them."""

    def __init__(self, **engine_options: float) -> None:
        self.events: dict[str, list[Event]] = {}
        self._changed = threading.Condition()
        self.observed: list[tuple[str, str, object]] = []
        self.lost: list[tuple[str, str]] = []
        self.engine = Engine(
            self._deliver,
            self,  # type: ignore[arg-type]
            lost=lambda variant, reason: self.lost.append((variant, reason)),
            **engine_options,  # type: ignore[arg-type]
        )
        self.loads: dict[str, object] = {}

    def _deliver(self, events: Sequence[Event]) -> None:
        with self._changed:
            for event in events:
                self.events.setdefault(event.request_id, []).append(event)
            self._changed.notify_all()

    def stepped(self, variant: str, kind: object, seconds: float, load: object) -> None:  # noqa: ARG002 - the observer's signature
        self.loads[variant] = load
        self.observed.append(("stepped", variant, kind))

    def drafted(self, variant: str, count: int, accepted: int) -> None:
        self.observed.append(("drafted", variant, (count, accepted)))

    def loaded(self, variant: str, load: object) -> None:
        self.loads[variant] = load

    def failed(self, variant: str, error: BaseException) -> None:
        self.observed.append(("failed", variant, error))

    def attach(
        self,
        session: DecoderSession,
        variant: str = "a",
        *,
        budget: int = 1024,
        step_tokens: int = 16,
        weight: float = 1.0,
        rebuild: Callable[[], DecoderSession] | None = None,
        drafting: Drafting | None = None,
    ) -> None:
        make = rebuild or (lambda: PrefixSession(session.slots, session.max_length))
        self.engine.post(Attach(variant, session, make, budget, step_tokens, weight, drafting))

    def submit(
        self, request_id: str, prompt: Sequence[int], variant: str = "a", **options: object
    ) -> None:
        of_submit = (
            "deadline_s",
            "stop_s",
            "queue_until_s",
            "priority",
            "client",
            "constraint",
            "scoring",
        )
        more: Any = {name: options.pop(name) for name in of_submit if name in options}
        sampling = Sampling(**{"max_tokens": 8, "temperature": 0.0, **options})  # type: ignore[arg-type]
        self.engine.post(Submit(request_id, variant, tuple(prompt), sampling, 0.0, **more))

    def final(self, request_id: str, timeout_s: float = 20.0) -> Finished | Failed:
        """Wait for the request's final event."""

        def ended() -> bool:
            events = self.events.get(request_id, [])
            return bool(events) and not isinstance(events[-1], (Generated, Scored))

        with self._changed:
            assert self._changed.wait_for(ended, timeout_s), f"{request_id} did not end"
            final = self.events[request_id][-1]
        assert isinstance(final, (Finished, Failed))
        return final

    def wait_tokens(self, request_id: str, count: int, timeout_s: float = 20.0) -> None:
        """Wait until that many tokens have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.tokens(request_id)) >= count, timeout_s)

    def tokens(self, request_id: str) -> list[int]:
        """Tokens so far."""
        return [
            token.token_id
            for event in self.events.get(request_id, [])
            if isinstance(event, Generated)
            for token in event.tokens
        ]

    def finals(self, request_id: str) -> int:
        """How many final events came."""
        running = (Generated, Scored)
        return sum(not isinstance(event, running) for event in self.events.get(request_id, []))

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(vocab,) of the model behind a prefix."""
        return prefix_logits(tokens)


@pytest.fixture
def session() -> PrefixSession:
    """Four slots of 256 tokens."""
    return PrefixSession()


@pytest.fixture
def make_session() -> type[PrefixSession]:
    """The oracle session's class."""
    return PrefixSession


@pytest.fixture
def harness() -> Harness:  # type: ignore[misc]
    """A started engine, stopped at the end."""
    harness = Harness()
    harness.engine.start()
    yield harness  # type: ignore[misc]
    harness.engine.stop()


@pytest.fixture
def make_harness() -> type[Harness]:
    """The harness's class, for engines with options."""
    return Harness


@pytest.fixture
def greedy_oracle() -> Callable[[Sequence[int], int], list[int]]:
    """Greedy tokens of a prompt, computed alone from whole prefixes."""

    def continue_(prompt: Sequence[int], count: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(prefix_logits(tokens).argmax()))
        return tokens[len(prompt) :]

    return continue_
