"""One run of the load generator against a server.

Owns what is sent (lengths of prompts and answers, who leaves early) and what came of it so far.
Knows nothing of terminals, files or figures.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protos import inference_pb2 as pb
from server.bench.arrivals import Plan, send_all
from server.bench.attempt import Attempt, attempt
from server.bench.lengths import Lengths
from server.bench.prompts import Prompts


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent.

    Attributes:
        plan: When.
        prompt_tokens: Lengths of prompts, without what they share.
        output_tokens: Lengths of answers, each exactly so long.
        variants: Names to ask in turn; one empty name is routed traffic.
        cancel_rate: Share of requests that leave in the middle of the answer.
        shared_prefix: Tokens that all prompts begin with.
        timeout_s: Deadline of each request, from when it is due.
        temperature: Of sampling.
    """

    plan: Plan
    prompt_tokens: Lengths
    output_tokens: Lengths
    variants: tuple[str, ...] = ("",)
    cancel_rate: float = 0.0
    shared_prefix: int = 0
    timeout_s: float = 600.0
    temperature: float = 0.0

    def described(self) -> dict[str, Any]:
        """For a report."""
        plan = self.plan
        return {
            "loop": "closed" if plan.rate is None else "open",
            "rate": plan.rate,
            "concurrency": plan.concurrency if plan.rate is None else None,
            "seconds": plan.seconds,
            "requests": plan.requests,
            "variants": [name for name in self.variants if name],
            "prompt_tokens": str(self.prompt_tokens),
            "output_tokens": str(self.output_tokens),
            "shared_prefix": self.shared_prefix,
            "cancel_rate": self.cancel_rate,
            "timeout_seconds": self.timeout_s,
            "temperature": self.temperature,
            "seed": plan.seed,
        }


@dataclass(frozen=True, slots=True)
class Record:
    """What came of a run.

    Attributes:
        attempts: All requests that were sent and have ended, in the order of their ends.
        begun_s: When it began (monotonic seconds).
        sending_s: Seconds during which requests were sent.
        seconds: From the beginning to the last answer, ``sending_s`` at least.
    """

    attempts: tuple[Attempt, ...]
    begun_s: float
    sending_s: float
    seconds: float


class Run:
    """Sends a load; what came so far can be asked for at any moment."""

    def __init__(
        self,
        stubs: Sequence[Any],
        prompts: Mapping[str, Prompts],
        load: Load,
        *,
        metadata: Sequence[tuple[str, str]] = (),
        ended: Callable[[Attempt], None] = lambda _: None,
    ) -> None:
        """Prepare.

        Args:
            stubs: Of the server, one per connection; requests take them in turn.
            prompts: By variant's name.
            load: What is sent, and when.
            metadata: Sent with every request.
            ended: Told of each request that ended.
        """
        self._stubs = stubs
        self._prompts = prompts
        self._load = load
        self._metadata = tuple(metadata)
        self._ended = ended
        self._attempts: list[Attempt] = []
        self._begun_s: float | None = None
        self._sent_s = 0.0  # of the last one
        self._sent = 0
        self._done = False

    @property
    def sent(self) -> int:
        """Requests that were sent so far, those of the warm-up not counted."""
        return self._sent

    async def warm_up(self, count: int) -> None:
        """Send so many requests of the same kind that no figure counts."""
        plan = Plan(None, min(self._load.plan.concurrency, max(count, 1)), None, count)

        async def send(number: int, due_s: float) -> float:
            # Numbers that the run itself does not use, so that no beginning is met again.
            one = await self._attempt(-1 - number, due_s, lambda _: None)
            return one.pause_s

        await send_all(plan, send)

    async def measure(self) -> None:
        """Send everything and wait for every answer; who cancels this keeps what came."""
        self._begun_s = self._sent_s = time.monotonic()
        await send_all(self._load.plan, self._send)
        self._done = True

    def record(self) -> Record:
        """What came so far."""
        now_s = time.monotonic()
        begun_s = now_s if self._begun_s is None else self._begun_s
        plan = self._load.plan
        if plan.seconds is None or self._sent == plan.requests:
            sending_s = self._sent_s - begun_s
        else:  # time is what ends it, and requests could have been sent until then
            sending_s = plan.seconds if self._done else min(plan.seconds, now_s - begun_s)
        last_s = max((one.ended_s for one in self._attempts), default=begun_s) - begun_s
        return Record(tuple(self._attempts), begun_s, sending_s, max(last_s, sending_s))

    async def _send(self, number: int, due_s: float) -> float:
        self._sent += 1
        self._sent_s = time.monotonic()
        one = await self._attempt(number, due_s, self._keep)
        return one.pause_s

    def _keep(self, one: Attempt) -> None:
        self._attempts.append(one)
        self._ended(one)

    async def _attempt(
        self, number: int, due_s: float, ended: Callable[[Attempt], None]
    ) -> Attempt:
        load = self._load
        rng = random.Random(f"{load.plan.seed} {number}")  # noqa: S311 - no secret
        variant = load.variants[number % len(load.variants)]
        length, tokens = load.prompt_tokens.draw(rng), load.output_tokens.draw(rng)
        leaves = rng.random() < load.cancel_rate
        leaves_after = rng.randint(1, max(tokens - 1, 1)) if leaves else None
        prompt = self._prompts[variant].draw(number, length, load.shared_prefix, rng)
        return await attempt(
            self._stubs[number % len(self._stubs)],
            pb.GenerateRequest(
                variant=variant,
                token_ids=pb.TokenIds(ids=prompt),
                sampling=pb.SamplingParameters(
                    max_tokens=tokens,
                    ignore_eos=True,
                    temperature=load.temperature,
                    seed=number % (1 << 32),
                ),
            ),
            ended,
            due_s=due_s,
            timeout_s=load.timeout_s,
            leaves_after=leaves_after,
            metadata=self._metadata,
        )
